// The admin token of this tab. The publisher checks it. The page reads its claims only to show them.

const KEY = 'kmarket.console.token';

export class Session {
    #token = null;

    /** Takes the token of the link that opened the page, or the token that this tab has stored. */
    static restore() {
        const session = new Session();
        session.#token = linkedToken() ?? stored();
        return session;
    }

    get token() { return this.#token; }

    set token(token) {
        this.#token = token;
        try {
            if (token) sessionStorage.setItem(KEY, token);
            else sessionStorage.removeItem(KEY);
        } catch { /* storage may be forbidden: the token lasts until the page is left */ }
    }

    get claims() { return claims(this.#token); }

    get mayTrade() { return ['trader', 'admin'].includes(this.claims.role); }

    /** Time until the token expires, in ms; negative after that. */
    get left() { return (this.claims.exp ?? Infinity) * 1000 - Date.now(); }
}

/** Returns the token of a link, `#token=…`, or null. Removes it from the address bar. */
export function linkedToken() {
    const token = new URLSearchParams(location.hash.slice(1)).get('token')?.trim();
    if (location.hash) history.replaceState(null, '', location.pathname + location.search);
    return token || null;
}

/** Returns `{sub, role, exp}` of a token, or `{}` if it cannot be read. */
function claims(token) {
    try {
        const base64 = token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
        const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
        const { sub, role, exp } = JSON.parse(new TextDecoder().decode(bytes));
        return { sub: String(sub), role: String(role), exp: Number(exp) };
    } catch { return {}; }
}

function stored() {
    try { return sessionStorage.getItem(KEY); } catch { return null; }
}
