// The list: of thousands of runs, only those that can be seen are in the document.
//
// Every row has the same height, so a multiplication tells which rows those are. While somebody
// reads (the list is scrolled, or a run has the cursor), the row that is read does not move by a
// pixel: what comes or goes above it is added to the scroll position before the browser paints.

import { html, render } from '../vendor/lit-html/lit-html.js';
import { repeat } from '../vendor/lit-html/directives/repeat.js';
import { row } from './row.js';

/**
 * @typedef {import('./clock.js').Moment} Moment
 * @typedef {import('./store.js').Entry} Entry
 * @typedef {import('./store.js').Store} Store
 * @typedef {import('./texts.js').Texts} Texts
 */

const BEYOND = 4; // rows above and below what can be seen: a fast scroll shows no gap

export class Grid {
  /** The run that has the cursor: its id, not its index. @type {string | undefined} */ cursor;
  /** Runs that came above since the top of the list was last seen. */
  newer = 0;
  #height = 44; // px of a row
  #first = 0; // index of the first row in the document
  /** @type {readonly string[]} The ids of the rows in the document. */ #drawn = [];
  #top = 0; // the scroll position for which they were drawn

  /** @param {Record<'grid' | 'space' | 'rows' | 'ruler', HTMLElement>} parts */
  constructor(parts) {
    this.#parts = parts;
    new ResizeObserver(() => this.#measure()).observe(parts.ruler);
    this.#measure();
  }

  #parts;

  /** @param {Store} store @param {Moment} moment @param {Texts} texts */
  draw(store, moment, texts) {
    const { grid, space, rows } = this.#parts;
    const { list } = store;
    const top = this.#hold(store, grid.scrollTop);
    const visible = Math.ceil(this.#room / this.#height) + 1;
    const first = Math.max(
      0,
      Math.min(Math.floor(top / this.#height), list.length - visible) - BEYOND,
    );
    const shown = list.slice(first, first + visible + 2 * BEYOND);
    space.style.height = `${list.length * this.#height}px`;
    rows.style.transform = `translateY(${first * this.#height}px)`;
    const cursor = this.cursor;
    const template = (/** @type {Entry} */ entry, /** @type {number} */ i) =>
      row(entry, first + i, entry.id === cursor, moment, texts);
    render(html`${repeat(shown, (entry) => entry.id, template)}`, rows);
    if (grid.scrollTop !== top) grid.scrollTop = top;
    this.#first = first;
    this.#drawn = shown.map((entry) => entry.id);
    this.#top = grid.scrollTop; // the browser keeps it within the list
    if (this.#top === 0) this.newer = 0;
    const at = cursor === undefined ? -1 : this.#drawn.indexOf(cursor);
    if (at < 0) grid.removeAttribute('aria-activedescendant');
    else grid.setAttribute('aria-activedescendant', `row-${first + at}`);
    grid.setAttribute('aria-rowcount', String(list.length + 1));
  }

  /**
   * The scroll position at which what is read stays where it is.
   *
   * @param {Store} store @param {number} top
   */
  #hold(store, top) {
    if (top === 0 && this.cursor === undefined) return top;
    for (const before of this.#anchors(top)) {
      const now = store.indexOf(this.#drawn[before - this.#first]);
      if (now < 0) continue; // it is gone, or no longer passes the filter
      if (now > before) this.newer += now - before;
      return Math.max(0, top + (now - before) * this.#height);
    }
    return top;
  }

  /**
   * Indices of drawn rows: the cursor's if it can be seen, then from the top of the view.
   *
   * @param {number} top
   */
  *#anchors(top) {
    const at = Math.floor(top / this.#height);
    const end = this.#first + this.#drawn.length;
    const cursor = this.cursor === undefined ? -1 : this.#drawn.indexOf(this.cursor);
    const index = this.#first + cursor;
    if (cursor >= 0 && index >= at && index * this.#height < top + this.#room) yield index;
    for (let i = Math.max(at, this.#first); i < end; i++) yield i;
  }

  /** Whether the run is in the document. @param {string} id */
  contains(id) {
    return this.#drawn.includes(id);
  }

  /** Another list: from its beginning. */
  rewind() {
    this.#drawn = [];
    this.newer = 0;
    this.#parts.grid.scrollTop = 0;
  }

  toTop() {
    this.cursor = undefined;
    this.rewind();
  }

  // The cursor

  /**
   * Move it by rows, or to the first run that can be seen.
   *
   * @param {Store} store @param {number} by
   */
  move(store, by) {
    const { list } = store;
    if (!list.length) return;
    const at = this.cursor === undefined ? -1 : store.indexOf(this.cursor);
    const seen = Math.ceil(this.#parts.grid.scrollTop / this.#height);
    const to = at < 0 ? seen : at + by;
    this.place(store, Math.max(0, Math.min(list.length - 1, to)));
  }

  /** @param {Store} store @param {number} index */
  place(store, index) {
    const { grid } = this.#parts;
    this.cursor = store.list[index]?.id;
    // As little as shows the whole row.
    const [above, below] = [index * this.#height, (index + 1) * this.#height - this.#room];
    grid.scrollTop = Math.max(below, Math.min(above, grid.scrollTop));
  }

  /** Rows of a page. */
  get page() {
    return Math.max(1, Math.floor(this.#room / this.#height) - 1);
  }

  /** Px of rows that can be seen: the head of the table covers the first ones. */
  get #room() {
    return this.#parts.grid.clientHeight - this.#parts.space.offsetTop;
  }

  #measure() {
    this.#height = this.#parts.ruler.getBoundingClientRect().height || this.#height;
  }
}
