//! The trading console: a page for the desk (`docs/operations.md#the-trading-console`). It uses the admin API only.

use axum::Router;
use service::http::pages::{self, BASE_CSS, DOM_JS, File, I18N_JS, ICON_SVG};

/// A script of the page, at `/console/` and its name.
macro_rules! js {
    ($name:literal) => {
        File::js(concat!("/console/", $name), include_str!(concat!("../console/", $name)))
    };
}

const FILES: [File; 24] = [
    File::html("/console", include_str!("../console/index.html")),
    File::html("/console/", include_str!("../console/index.html")),
    File::css("/console/console.css", include_str!("../console/console.css")),
    File::css("/console/base.css", BASE_CSS),
    File::svg("/console/icon.svg", ICON_SVG),
    File::js("/console/dom.js", DOM_JS),
    File::js("/console/i18n.js", I18N_JS),
    js!("main.js"),
    js!("api.js"),
    js!("audit.js"),
    js!("decimal.js"),
    js!("dialogs.js"),
    js!("diff.js"),
    js!("focus.js"),
    js!("json.js"),
    js!("list.js"),
    js!("market.js"),
    js!("poller.js"),
    js!("rows.js"),
    js!("sender.js"),
    js!("session.js"),
    js!("texts.js"),
    js!("time.js"),
    js!("undo.js"),
];

/// Returns the routes of the page and its files. They need no token, since they hold no data.
pub(crate) fn router() -> Router {
    pages::router(FILES)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    use super::*;

    /// Returns the parts of `text` between `open` and `close`.
    fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
        text.split(open).skip(1).filter_map(move |rest| Some(rest.split_once(close)?.0))
    }

    #[tokio::test]
    async fn every_file_that_a_file_names_is_served() {
        let status = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router().oneshot(request).await.unwrap().status()
        };
        for file in FILES {
            let text = std::str::from_utf8(file.bytes).unwrap();
            let imported = between(text, "from './", "'").map(|name| format!("/console/{name}"));
            let linked =
                between(text, "href=\"", "\"").chain(between(text, "src=\"", "\"")).map(str::to_owned);
            for path in imported.chain(linked) {
                assert_eq!(status(&path).await, 200, "{path} in {}", file.path);
            }
        }
    }

    #[test]
    fn no_text_ever_becomes_markup_or_code() {
        for file in FILES {
            let text = std::str::from_utf8(file.bytes).unwrap();
            for unsafe_way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            {
                assert!(!text.contains(unsafe_way), "{unsafe_way} in {}", file.path);
            }
        }
    }
}
