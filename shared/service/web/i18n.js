// A page's texts in the reader's language, zh or en: that of the browser until the reader chooses.

const KEY = 'kmarket.language';
const TAGS = { zh: 'zh-CN', en: 'en' };

/** Takes `texts` as `{zh: {name: text}, en: {…}}`. `{x}` in a text stands for a value. */
export class Texts {
    #texts; #language; #listeners = new Set();

    constructor(texts) {
        this.#texts = texts;
        const chosen = stored();
        this.#language = chosen in TAGS ? chosen : navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en';
        this.#show();
    }

    get language() { return this.#language; }

    /** Calls `run` after each change of the language. */
    onChange(run) { this.#listeners.add(run); }

    /** Changes the language, and stores it for all pages of this host. */
    choose(language) {
        this.#language = language in TAGS ? language : 'en';
        try { localStorage.setItem(KEY, this.#language); } catch { /* storage may be forbidden: lasts for this visit */ }
        this.#show();
        this.#listeners.forEach((run) => run());
    }

    /** Returns a text with its values filled in. */
    of(name, values = {}) {
        const text = this.#texts[this.#language][name] ?? this.#texts.en[name] ?? name;
        return text.replace(/\{(\w+)\}/g, (whole, value) => (value in values ? String(values[value]) : whole));
    }

    /** Fills texts into `root`. `data-text` names an element's text; `data-title`, `-label` and `-placeholder` an attribute's. */
    fill(root) {
        const each = (name, put) => {
            for (const element of root.querySelectorAll(`[data-${name}]`)) put(element, this.of(element.dataset[name]));
        };
        each('text', (element, text) => { element.textContent = text; });
        each('title', (element, text) => { element.title = text; });
        each('label', (element, text) => { element.setAttribute('aria-label', text); });
        each('placeholder', (element, text) => { element.placeholder = text; });
    }

    #show() {
        document.documentElement.lang = TAGS[this.#language];
        this.fill(document);
    }
}

function stored() {
    try { return localStorage.getItem(KEY); } catch { return null; } // storage may be forbidden
}
