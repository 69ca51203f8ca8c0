// The tab's icon: what a glance at a row of tabs tells. Each state has a shape of its own.

/** @typedef {'failed' | 'stale' | 'running' | 'idle'} State The first that holds is shown. */

const WHITE = 'stroke="#fff" stroke-width="4" stroke-linecap="round"';

/** @type {Record<State, string>} */
const SHAPES = {
  failed:
    '<circle cx="16" cy="16" r="15" fill="#c62f24"/>' +
    `<path d="m10 10 12 12m0-12L10 22" ${WHITE}/>`,
  stale: `<path d="M16 2 31 29H1Z" fill="#d48806"/><path d="M16 12v8m0 5v.5" ${WHITE}/>`,
  running:
    '<circle cx="16" cy="16" r="15" fill="#2f6fde"/>' + '<path d="m12 9 11 7-11 7Z" fill="#fff"/>',
  idle: '<circle cx="16" cy="16" r="12" fill="none" stroke="#7b8794" stroke-width="5"/>',
};

const SVG = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"';

export class Favicon {
  /** @type {State | undefined} */ #state;

  /** @param {HTMLLinkElement} link */
  constructor(link) {
    this.#link = link;
  }

  #link;

  /** @param {State} state */
  show(state) {
    if (state === this.#state) return;
    this.#state = state;
    const svg = `<svg ${SVG}>${SHAPES[state]}</svg>`;
    this.#link.href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  }
}
