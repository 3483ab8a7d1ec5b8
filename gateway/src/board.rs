//! The live board: a page that shows markets as clients see them, with the SDK that clients use.

use axum::Router;
use service::{
    http::pages::{self, File},
    settings::Setting,
};

/// Whether the page is served.
pub const BOARD: Setting<bool> = Setting::new(
    "BOARD",
    "(true when embedded, else false)",
    "serve the live board, a page for browsers, at /",
);

/// The files of the page. Its base sheet and its language switch are shared with other pages.
const FILES: &[File] = &[
    File::html("/", include_str!("../board/index.html")),
    File::js("/board/board.js", include_str!("../board/board.js")),
    File::js("/board/card.js", include_str!("../board/card.js")),
    File::js("/board/link.js", include_str!("../board/link.js")),
    File::js("/board/resume.js", include_str!("../board/resume.js")),
    File::js("/board/texts.js", include_str!("../board/texts.js")),
    File::css("/board/board.css", include_str!("../board/board.css")),
    File::css("/board/base.css", pages::BASE_CSS),
    File::js("/board/dom.js", pages::DOM_JS),
    File::js("/board/i18n.js", pages::I18N_JS),
    File::svg("/board/icon.svg", pages::ICON_SVG),
    File::js("/board/sdk/index.js", include_str!("../../sdk/src/index.js")),
    File::js("/board/sdk/backoff.js", include_str!("../../sdk/src/backoff.js")),
    File::js("/board/sdk/client.js", include_str!("../../sdk/src/client.js")),
    File::js("/board/sdk/clock.js", include_str!("../../sdk/src/clock.js")),
    File::js("/board/sdk/connection.js", include_str!("../../sdk/src/connection.js")),
    File::js("/board/sdk/gaps.js", include_str!("../../sdk/src/gaps.js")),
    File::js("/board/sdk/heartbeat.js", include_str!("../../sdk/src/heartbeat.js")),
    File::js("/board/sdk/json.js", include_str!("../../sdk/src/json.js")),
    File::js("/board/sdk/lines.js", include_str!("../../sdk/src/lines.js")),
    File::js("/board/sdk/markets.js", include_str!("../../sdk/src/markets.js")),
    File::js("/board/sdk/requests.js", include_str!("../../sdk/src/requests.js")),
    File::js("/board/sdk/store.js", include_str!("../../sdk/src/store.js")),
    File::js("/board/sdk/time.js", include_str!("../../sdk/src/time.js")),
    File::js("/board/sdk/timers.js", include_str!("../../sdk/src/timers.js")),
    File::js("/board/sdk/token.js", include_str!("../../sdk/src/token.js")),
    File::js("/board/sdk/web.js", include_str!("../../sdk/src/web.js")),
    File::js("/board/sdk/wx.js", include_str!("../../sdk/src/wx.js")),
];

/// Returns routes for the page at `/` and its files under `/board/`. The page links to the trading console if the same
/// listener has it.
pub fn router(has_console: bool) -> Router {
    let console =
        if has_console { "export const CONSOLE = 'console';\n" } else { "export const CONSOLE = null;\n" };
    pages::router(FILES.iter().copied().chain([File::js("/board/console.js", console)]))
}
