// The live page: wires its parts. Nothing else knows more than one of them.

import { Runs } from '../client.js';
import { render } from '../vendor/lit-html/lit-html.js';
import { format, parse, patience } from './address.js';
import { Moment } from './clock.js';
import { detail } from './detail.js';
import { Favicon } from './favicon.js';
import { Grid } from './grid.js';
import { listen } from './keyboard.js';
import { Notifications } from './notifications.js';
import { storage } from './storage.js';
import { EVERYTHING, STATUSES, Store } from './store.js';
import { Texts, chooseLanguage } from './texts.js';
import * as view from './view.js';

/**
 * @typedef {import('../client.js').Change} Change
 * @typedef {import('../client.js').LiveRun} LiveRun
 * @typedef {import('../client.js').Status} Status
 */

const TOKEN = 'brain-token'; // in the storage of the tab
const KEPT = 10_000; // finished runs
const SPEAK = 10_000; // ms between two sentences for a screen reader
const SAY_COPIED = 1500; // ms

/** @param {string} id */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

class Page {
  #texts = new Texts(
    chooseLanguage(new URLSearchParams(location.search).get('lang'), navigator.languages),
  );
  #store = new Store(patience(location.search));
  #grid = new Grid({
    grid: element('grid'),
    space: element('space'),
    rows: element('rows'),
    ruler: element('ruler'),
  });
  #favicon = new Favicon(/** @type {HTMLLinkElement} */ (element('icon')));
  #notifications = new Notifications(this.#texts, (id) => this.#open(id));
  /** @type {Runs} */ #runs;
  /** @type {string | undefined} The run whose details are open. */ #opened;
  /** @type {LiveRun | undefined} */ #last;
  /** @type {string | undefined} */ #copied;
  #failedUnseen = false;
  #drawing = 0;
  #spoken = 0;

  constructor() {
    document.documentElement.lang = this.#texts.tag;
    element('grid').setAttribute('aria-label', this.#texts.say('runs'));
    render(view.head(this.#texts), element('head'));
    this.#read();
    this.#runs = this.#connect();
    listen((action, key) => this.#act(action, key));
    addEventListener('popstate', () => this.#travel());
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) this.#failedUnseen = false;
      this.#tick();
    });
    element('grid').addEventListener('scroll', () => this.#invalidate(), { passive: true });
    element('rows').addEventListener('click', (event) => this.#click(event));
    addEventListener('resize', () => this.#invalidate());
    setInterval(() => this.#tick(), 1000);
    this.#draw();
  }

  // The runs

  #connect() {
    const token = storage('sessionStorage')[TOKEN];
    const runs = new Runs(location.origin, {
      finished: KEPT,
      token: token === undefined ? undefined : () => token,
    });
    runs.subscribe((changes) => {
      const more = this.#store.apply(changes);
      this.#notifications.tell(changes);
      for (const { id, run, previous, news } of changes) {
        if (id === this.#opened) this.#last = run ?? previous;
        const failed = news && run?.status === 'failed' && previous?.status !== 'failed';
        if (failed && document.hidden) this.#failedUnseen = true;
      }
      // A hidden tab draws nothing, but its icon and title are seen.
      if (document.hidden || !changes.length) this.#tick();
      // Of a thousand changes a second, most are of runs that nobody sees.
      else if (more || changes.some(({ id }) => this.#isSeen(id))) this.#invalidate();
    });
    return runs;
  }

  /** @param {string} id */
  #isSeen(id) {
    return id === this.#opened || this.#grid.contains(id);
  }

  /** Another Brain, as it were: with a token one sees other runs. @param {string} token */
  #sendToken(token) {
    storage('sessionStorage')[TOKEN] = token;
    this.#runs.stop();
    const { filter } = this.#store;
    this.#store = new Store(patience(location.search));
    this.#store.filter = filter;
    this.#runs = this.#connect();
    this.#tick();
  }

  // The address

  #read() {
    const { filter, run } = parse(location.search);
    this.#store.filter = filter;
    this.#show(run);
  }

  /** Back from the details: a filter that was set beside them stays. */
  #travel() {
    const closes = this.#opened !== undefined && parse(location.search).run === undefined;
    if (!closes) return this.#read();
    this.#show(undefined);
    this.#write('replaceState');
  }

  /** @param {'pushState' | 'replaceState'} method */
  #write(method) {
    const query = format({ filter: this.#store.filter, run: this.#opened }, location.search);
    history[method](
      method === 'pushState' ? { opened: true } : history.state,
      '',
      query || location.pathname,
    );
  }

  /** @param {Partial<import('./store.js').Filter>} change */
  #filter(change) {
    this.#store.filter = { ...this.#store.filter, ...change };
    this.#grid.rewind();
    this.#write('replaceState');
    this.#invalidate();
  }

  /** @param {Status} status */
  #toggleStatus(status) {
    const statuses = new Set(this.#store.filter.statuses);
    if (!statuses.delete(status)) statuses.add(status);
    this.#filter({ statuses: statuses.size ? statuses : undefined });
  }

  // The details

  /** @param {string} id */
  #open(id) {
    const method = this.#opened === undefined ? 'pushState' : 'replaceState';
    this.#show(id);
    this.#write(method);
  }

  #close() {
    if (history.state?.opened) {
      history.back(); // to where the details were opened; `popstate` closes them
      return;
    }
    this.#show(undefined);
    this.#write('replaceState');
  }

  /** @param {string | undefined} id */
  #show(id) {
    const left = this.#opened !== undefined && id === undefined;
    this.#opened = id;
    this.#last = id === undefined ? undefined : this.#store.get(id)?.run;
    if (id !== undefined) this.#grid.cursor = id;
    if (left) element('grid').focus();
    this.#invalidate();
  }

  /** @param {string} text */
  async #copy(text) {
    await copy(text);
    this.#copied = text;
    this.#invalidate();
    setTimeout(() => {
      this.#copied = undefined;
      this.#invalidate();
    }, SAY_COPIED);
  }

  // What the user does

  /** @param {import('./keyboard.js').Action} action @param {string} key */
  #act(action, key) {
    const [grid, store] = [this.#grid, this.#store];
    switch (action) {
      case 'search':
        element('search').focus();
        return true;
      case 'help':
        this.#help();
        return true;
      case 'next':
        this.#move(1);
        return true;
      case 'previous':
        this.#move(-1);
        return true;
      case 'pageDown':
        this.#move(grid.page);
        return true;
      case 'pageUp':
        this.#move(-grid.page);
        return true;
      case 'first':
        this.#place(0);
        return true;
      case 'last':
        this.#place(store.list.length - 1);
        return true;
      case 'open':
        if (grid.cursor === undefined) return false;
        this.#open(grid.cursor);
        return true;
      case 'escape':
        return this.#escape();
      case 'filter':
        this.#toggleStatus(STATUSES[Number(key) - 1]);
        return true;
      case 'pause':
        this.#pause();
        return true;
    }
  }

  /** One step back for each press. */
  #escape() {
    if (this.#opened !== undefined) this.#close();
    else if (this.#store.filter.text) this.#filter({ text: '' });
    else if (this.#grid.cursor !== undefined) this.#grid.cursor = undefined;
    else return false;
    this.#invalidate();
    return true;
  }

  /** @param {number} by */
  #move(by) {
    this.#grid.move(this.#store, by);
    this.#moved();
  }

  /** @param {number} index */
  #place(index) {
    if (index >= 0) this.#grid.place(this.#store, index);
    this.#moved();
  }

  #moved() {
    element('grid').focus({ preventScroll: true });
    const { cursor } = this.#grid;
    if (this.#opened !== undefined && cursor !== undefined && cursor !== this.#opened)
      this.#open(cursor);
    this.#invalidate();
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const row = /** @type {Element} */ (event.target).closest('[data-run]');
    if (!(row instanceof HTMLElement) || !getSelection()?.isCollapsed) return; // it selects text
    element('grid').focus({ preventScroll: true });
    this.#open(row.dataset.run ?? '');
  }

  #pause() {
    if (this.#store.isPaused) this.#store.resume();
    else this.#store.pause();
    this.#invalidate();
  }

  #help() {
    const dialog = /** @type {HTMLDialogElement} */ (element('help'));
    render(
      view.help(this.#texts, () => dialog.close()),
      dialog,
    );
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }

  #toTop() {
    this.#grid.toTop();
    this.#invalidate();
  }

  // Drawing

  /** Draw once before the browser's next frame, however much changes. */
  #invalidate() {
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#drawing = 0;
    const [store, texts] = [this.#store, this.#texts];
    const moment = new Moment(this.#runs);
    const act = this.#actions;
    render(view.bar(store, moment, texts, act, this.#notifications), element('bar'));
    const instead = view.state(store, moment, texts, act);
    render(instead, element('state'));
    this.#grid.draw(store, moment, texts);
    render(view.pills(this.#grid.newer, store, texts, act), element('pills'));
    const finished = { complete: this.#runs.complete, kept: KEPT };
    render(view.foot(store, moment, texts, act, finished), element('foot'));
    this.#drawDetail(moment);
    document.documentElement.classList.toggle('stale', !moment.isCurrent);
  }

  /** @param {Moment} moment */
  #drawDetail(moment) {
    const panel = element('detail');
    const id = this.#opened;
    panel.hidden = id === undefined;
    if (id === undefined) return;
    const shown = {
      id,
      entry: this.#store.get(id),
      last: this.#last,
      bell: this.#notifications.wants(id),
      bellPossible: this.#notifications.isPossible,
      copied: this.#copied,
    };
    render(detail(shown, moment, this.#texts, this.#actions), panel);
  }

  #actions = {
    toggleStatus: (/** @type {Status} */ status) => this.#toggleStatus(status),
    toggleQuiet: () => this.#filter({ quiet: !this.#store.filter.quiet }),
    search: (/** @type {string} */ text) => this.#filter({ text }),
    clear: () => this.#filter(EVERYTHING),
    resume: () => this.#pause(),
    retry: () => this.#runs.restart(),
    sendToken: (/** @type {string} */ token) => this.#sendToken(token),
    help: () => this.#help(),
    toTop: () => this.#toTop(),
    close: () => this.#close(),
    copy: (/** @type {string} */ text) => void this.#copy(text),
    isCopied: (/** @type {string} */ text) => this.#copied === text,
    toggleAnyBell: async () => {
      await this.#notifications.toggleAny();
      this.#invalidate();
    },
    toggleBell: async () => {
      await this.#notifications.toggle(this.#opened ?? '');
      this.#invalidate();
    },
  };

  /** What must be right in a hidden tab too, where nothing is drawn. */
  #tick() {
    const moment = new Moment(this.#runs);
    this.#store.tick(moment.known);
    const { counts } = this.#store;
    const warning = moment.isCurrent || moment.freshness.state === 'connecting' ? '' : '⚠ ';
    const running = `${this.#texts.number(counts.running)} ${this.#texts.say('running')} · `;
    const isKnown = view.isKnown(this.#store, moment);
    document.title = `${warning}${isKnown ? running : ''}${this.#texts.say('title')}`;
    this.#favicon.show(
      this.#failedUnseen ? 'failed' : warning ? 'stale' : counts.running ? 'running' : 'idle',
    );
    this.#speak(moment);
    this.#invalidate();
  }

  /**
   * For a screen reader: freshness and counts, seldom, and only if they changed.
   *
   * @param {Moment} moment
   */
  #speak(moment) {
    if (performance.now() - this.#spoken < SPEAK && this.#spoken) return;
    const { state } = moment.freshness;
    const sign =
      moment.isCurrent || state === 'behind'
        ? this.#texts.say(state === 'behind' ? 'behindShort' : state)
        : view.freshness(moment, this.#texts).sign;
    const { running, queued, failed } = this.#store.counts;
    const summary = this.#texts.say('saySummary', { state: sign, running, queued, failed });
    const region = element('say');
    if (region.textContent === summary) return;
    region.textContent = summary;
    this.#spoken = performance.now();
  }
}

/** @param {string} text */
async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // A page of http, from another machine, has no clipboard.
  const field = document.createElement('textarea');
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand('copy');
  field.remove();
}

new Page();
