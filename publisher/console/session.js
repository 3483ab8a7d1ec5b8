// Who is signed in: a token, kept for this tab only. The publisher checks it; what it says is read here for show.

const KEY = 'kmarket.console.token';

export class Session {
    #token = null;

    /** What a link brought, or what this tab had. */
    static restore() {
        const session = new Session();
        session.#token = linkedToken() ?? kept();
        return session;
    }

    get token() { return this.#token; }

    set token(token) {
        this.#token = token;
        try {
            if (token) sessionStorage.setItem(KEY, token);
            else sessionStorage.removeItem(KEY);
        } catch { /* then until the page is left */ }
    }

    get claims() { return claims(this.#token); }

    get mayTrade() { return ['trader', 'admin'].includes(this.claims.role); }

    /** Milliseconds until it ends; negative: so long ago. */
    get left() { return (this.claims.exp ?? Infinity) * 1000 - Date.now(); }
}

/** The token of a link, `#token=…`, if there is one. It leaves the address bar at once. */
export function linkedToken() {
    const token = new URLSearchParams(location.hash.slice(1)).get('token')?.trim();
    if (location.hash) history.replaceState(null, '', location.pathname + location.search);
    return token || null;
}

/** `{sub, role, exp}` of a token, as far as it says so. */
function claims(token) {
    try {
        const base64 = token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
        const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
        const { sub, role, exp } = JSON.parse(new TextDecoder().decode(bytes));
        return { sub: String(sub), role: String(role), exp: Number(exp) };
    } catch { return {}; }
}

function kept() {
    try { return sessionStorage.getItem(KEY); } catch { return null; }
}
