// What stands around the list: the bar above it, the states in its place, the line below, the keys.

import { html, nothing } from '../vendor/lit-html/lit-html.js';
import { HELP } from './keyboard.js';
import { COLUMNS, glyph } from './row.js';
import { storage } from './storage.js';
import { STATUSES } from './store.js';

/**
 * @typedef {import('../client.js').Status} Status
 * @typedef {import('./clock.js').Moment} Moment
 * @typedef {import('./store.js').Filter} Filter
 * @typedef {import('./store.js').Store} Store
 * @typedef {import('./texts.js').Key} Key
 * @typedef {import('./texts.js').Texts} Texts
 *
 * @typedef {{ target: HTMLInputElement }} Typed
 *
 * @typedef {object} Actions
 * @property {(status: Status) => void} toggleStatus
 * @property {() => void} toggleQuiet
 * @property {(text: string) => void} search
 * @property {() => void} clear
 * @property {() => void} resume
 * @property {() => void} toggleAnyBell
 * @property {() => void} help
 * @property {() => void} toTop
 * @property {() => void} retry
 * @property {(token: string) => void} sendToken
 * @property {(text: string) => void} copy
 * @property {(text: string) => boolean} isCopied
 */

// Freshness, in words

/** @param {Moment} moment @returns {boolean} */
export const wantsToken = ({ freshness: { state, code } }) =>
  state === 'ended' && (code === 401 || code === 4401);

/** The sign, and the sentence that explains it. @param {Moment} moment @param {Texts} texts */
export function freshness(moment, texts) {
  const { state, at, age, reason = '', code = '' } = moment.freshness;
  const time = at === undefined ? '' : texts.time(at, moment.now);
  const words = (/** @type {Key} */ key, /** @type {Key} */ hint, span = time) => ({
    sign: texts.say(key, { time: span }),
    hint: texts.say(hint, { time, reason, code }),
    time,
  });
  switch (state) {
    case 'live':
      return words('live', 'liveHint');
    case 'polled':
      return words('polled', 'polledHint');
    case 'behind':
      return words('behind', 'behindHint', texts.duration(age));
    case 'connecting':
      return words('connecting', 'connectingHint');
    case 'ended':
      return wantsToken(moment)
        ? words('tokenWanted', 'tokenHint')
        : words('refused', 'refusedHint');
    default:
      return at === undefined ? words('unreachable', 'unreachableHint') : words('away', 'awayHint');
  }
}

/**
 * Whether the counts are those of the table: before anything was loaded, nobody knows how many runs
 * there are.
 *
 * @param {Store} store @param {Moment} moment
 */
export const isKnown = (store, moment) => moment.freshness.at !== undefined || store.total > 0;

// The bar: its name stands in index.html, so that the browser paints before it runs a script

/**
 * @param {Store} store @param {Moment} moment @param {Texts} texts @param {Actions} act
 * @param {{ any: boolean, isPossible: boolean }} bell
 */
export function bar(store, moment, texts, act, bell) {
  const { state } = moment.freshness;
  const { sign, hint, time } = freshness(moment, texts);
  const bellName = texts.say(bell.isPossible ? 'bellAny' : 'bellDenied');
  return html`
    <div class="chips" role="group" aria-label=${texts.say('status')}>
      ${STATUSES.map((status, i) => {
        const count = isKnown(store, moment) ? store.counts[status] : undefined;
        return statusChip(status, i + 1, count, store, texts, act);
      })}
      ${quietChip(store, texts, act)}
    </div>
    <input
      id="search" type="search" autocomplete="off" spellcheck="false" maxlength="200"
      placeholder=${texts.say('search')} aria-label=${texts.say('search')}
      title=${texts.say('searchHint')}
      .value=${store.filter.text}
      @input=${(/** @type {Typed} */ { target }) => act.search(target.value)}
    />
    <div class="freshness ${state}" title=${hint}>
      ${glyph(moment.isCurrent ? 'live' : state === 'connecting' ? 'queued' : 'warning')}
      <span class="sign">${sign}</span>
      ${moment.isCurrent ? html`<span class="number as-of">${time}</span>` : nothing}
    </div>
    <button
      class="icon" aria-pressed=${bell.any} ?disabled=${!bell.isPossible}
      aria-label=${bellName} title="${bellName}. ${texts.say('bellHint')}"
      @click=${act.toggleAnyBell}
    >${glyph('bell')}</button>`;
}

/**
 * @param {Status} status @param {number} key @param {number | undefined} count
 * @param {Store} store @param {Texts} texts @param {Actions} act
 */
function statusChip(status, key, count, store, texts, act) {
  const name = texts.say(status);
  return html`<button
    class="chip ${status}" aria-pressed=${store.filter.statuses?.has(status) ?? false}
    title=${texts.say('filterHint', { name, key: String(key) })}
    @click=${() => act.toggleStatus(status)}
  >${chip(status, name, count, texts)}</button>`;
}

/**
 * @param {string} symbol @param {string} name @param {number | undefined} count
 * @param {Texts} texts
 */
const chip = (symbol, name, count, texts) =>
  html`${glyph(symbol)}<span class="word">${name}</span>
    <b class="number">${count === undefined ? texts.say('none') : texts.number(count)}</b>`;

/**
 * Only when there is one: it is a warning.
 *
 * @param {Store} store @param {Texts} texts @param {Actions} act
 */
function quietChip(store, texts, act) {
  if (!store.quiet && !store.filter.quiet) return nothing;
  return html`<button
    class="chip quiet" aria-pressed=${store.filter.quiet}
    title=${texts.say('quietHint', { time: texts.duration(store.patience) })}
    @click=${act.toggleQuiet}
  >${chip('quiet', texts.say('quiet'), store.quiet, texts)}</button>`;
}

/** @param {Texts} texts */
export const head = (texts) => html`<div class="row head" role="row" aria-rowindex="1">
  ${COLUMNS.map(
    (column) => html`<div role="columnheader" class="cell ${column}">${texts.say(column)}</div>`,
  )}
</div>`;

// In place of the list

/** @param {Store} store @param {Moment} moment @param {Texts} texts @param {Actions} act */
export function state(store, moment, texts, act) {
  if (wantsToken(moment)) return tokenForm(moment, texts, act);
  if (moment.freshness.state === 'ended') {
    const { sign, hint } = freshness(moment, texts);
    return box(
      sign,
      hint,
      html`<button class="wide" @click=${act.retry}>${texts.say('again')}</button>`,
    );
  }
  if (store.list.length) return nothing;
  if (store.total) {
    const hint = texts.say('noMatchHint', { count: store.total });
    const button = html`<button class="wide" @click=${act.clear}>${texts.say('clear')}</button>`;
    return box(texts.say('noMatch'), hint, button);
  }
  if (moment.isCurrent) {
    return box(texts.say('empty'), texts.say('emptyHint'), commands(texts, act));
  }
  const { sign, hint } = freshness(moment, texts);
  return box(sign, hint, nothing);
}

/** @param {string} title @param {string} hint @param {unknown} rest */
const box = (title, hint, rest) =>
  html`<div class="box"><h2>${title}</h2><p>${hint}</p>${rest}</div>`;

/** @param {Texts} texts @param {Actions} act */
function commands(texts, act) {
  const { origin } = location;
  const json = "-H 'Content-Type: application/json'";
  const bearer = storage('sessionStorage')['brain-token']
    ? ' -H "Authorization: Bearer $BRAIN_TOKEN"'
    : '';
  const patch = `curl -s -X PATCH ${origin}/api/runs/test-run-1${bearer} ${json}`;
  /** @type {readonly [Key, string][]} */
  const lines = [
    ['emptyCreate', `curl -s ${origin}/api/runs${bearer} ${json} -d '{"id":"test-run-1"}'`],
    ['emptyStart', `${patch} -d '{"status":"running","progress":40,"agent":"me"}'`],
    ['emptyEnd', `${patch} -d '{"status":"completed","progress":100}'`],
  ];
  return html`<ol class="commands">
    ${lines.map(
      ([key, line]) => html`<li>${texts.say(key)}
        <div class="command"><pre tabindex="0">${line}</pre>
          <button
            class="copy" aria-label=${texts.say('copyField', { name: texts.say(key) })}
            @click=${() => act.copy(line)}
          >${texts.say(act.isCopied(line) ? 'copied' : 'copy')}</button></div>
      </li>`,
    )}
  </ol>`;
}

/** @param {Moment} moment @param {Texts} texts @param {Actions} act */
function tokenForm({ freshness: { reason = '' } }, texts, act) {
  const send = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.target);
    act.sendToken(String(new FormData(form).get('token')).trim());
  };
  const wasSent = storage('sessionStorage')['brain-token'] !== undefined;
  return html`<form class="box" @submit=${send}>
    <h2>${texts.say('tokenWanted')}</h2>
    <p>${texts.say('tokenHint')}</p>
    <label>${texts.say('tokenLabel')}
      <input
        name="token" type="password" autocomplete="off" maxlength="4096" required autofocus
        aria-describedby="token-reason"
      />
    </label>
    <button class="wide primary">${texts.say('tokenSend')}</button>
    <p id="token-reason" class="reason" role="alert">${wasSent ? reason : nothing}</p>
  </form>`;
}

// Above the list, and below it

/** @param {number} newer @param {Store} store @param {Texts} texts @param {Actions} act */
export const pills = (newer, store, texts, act) => html`
  ${
    newer
      ? html`<button class="pill" @click=${act.toTop}>
        ${texts.say('newer', { count: newer })}
      </button>`
      : nothing
  }
  ${
    store.isPaused
      ? html`<button class="pill paused" title=${texts.say('pausedHint')} @click=${act.resume}>
        ${texts.say('paused', { count: store.waiting })}
      </button>`
      : nothing
  }`;

/**
 * @param {Store} store @param {Moment} moment @param {Texts} texts @param {Actions} act
 * @param {{ complete: boolean, kept: number }} finished
 */
export function foot(store, moment, texts, act, { complete, kept }) {
  const [count, { total }] = [store.list.length, store];
  const { hint } = freshness(moment, texts);
  const { state } = moment.freshness;
  // In place of the list, the same sentence stands already.
  const isSaid = state === 'live' || state === 'ended' || (!total && state !== 'polled');
  return html`
    <span class="number">
      ${
        isKnown(store, moment)
          ? texts.say(count === total ? 'shown' : 'shownOf', { count, total })
          : nothing
      }
    </span>
    ${complete ? nothing : html`<span>${texts.say('trimmed', { count: kept })}</span>`}
    <span class="hint">${isSaid ? nothing : hint}</span>
    <button class="link" title=${texts.say('keysHint')} @click=${act.help}>
      ${texts.say('keys')} <kbd>?</kbd>
    </button>`;
}

/** @param {Texts} texts @param {() => void} close */
export const help = (texts, close) => html`
  <h2 id="help-name">${texts.say('keys')}</h2>
  <dl>
    ${HELP.map(
      ({ keys, text }) => html`
        <dt>${keys.map((key) => html`<kbd>${key}</kbd> `)}</dt>
        <dd>${texts.say(text)}</dd>`,
    )}
  </dl>
  <button class="wide" @click=${close}>${texts.say('close')}</button>`;
