// A page's texts in the reader's language: zh or en, by the browser's language until the reader chooses.

const KEY = 'kmarket.language';
const TAGS = { zh: 'zh-CN', en: 'en' };

/** `texts`: `{zh: {name: text}, en: {…}}`. `{x}` in a text stands for a value. */
export class Texts {
    #texts; #language; #listeners = new Set();

    constructor(texts) {
        this.#texts = texts;
        const chosen = kept();
        this.#language = chosen in TAGS ? chosen : navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en';
        this.#show();
    }

    get language() { return this.#language; }

    /** Each call of `run` is told by nothing but the language that holds now. */
    onChange(run) { this.#listeners.add(run); }

    /** Kept for all pages of this host. */
    choose(language) {
        this.#language = language in TAGS ? language : 'en';
        try { localStorage.setItem(KEY, this.#language); } catch { /* then for this visit */ }
        this.#show();
        this.#listeners.forEach((run) => run());
    }

    of(name, values = {}) {
        const text = this.#texts[this.#language][name] ?? this.#texts.en[name] ?? name;
        return text.replace(/\{(\w+)\}/g, (whole, value) => (value in values ? String(values[value]) : whole));
    }

    /** Fills in `root`: `data-text` names an element's text; `data-title`, `-label`, `-placeholder` an attribute's. */
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

function kept() {
    try { return localStorage.getItem(KEY); } catch { return null; } // storage may be forbidden
}
