// Everything about one run.

import { html, nothing } from '../vendor/lit-html/lit-html.js';
import { elapsed, glyph, idle, progressBar, statusWord } from './row.js';

/**
 * @typedef {import('../client.js').LiveRun} LiveRun
 * @typedef {import('./clock.js').Moment} Moment
 * @typedef {import('./store.js').Entry} Entry
 * @typedef {import('./texts.js').Key} Key
 * @typedef {import('./texts.js').Texts} Texts
 *
 * @typedef {object} Actions
 * @property {() => void} close
 * @property {(text: string) => void} copy
 * @property {() => void} toggleBell
 *
 * @typedef {object} Shown
 * @property {string} id
 * @property {Entry | undefined} entry
 * @property {LiveRun | undefined} last What it was before it was deleted.
 * @property {boolean} bell
 * @property {boolean} bellPossible
 * @property {string | undefined} copied
 */

/** @param {Shown} shown @param {Moment} moment @param {Texts} texts @param {Actions} act */
export function detail({ id, entry, last, bell, bellPossible, copied }, moment, texts, act) {
  const run = entry?.run ?? last;
  const copyButton = (/** @type {string} */ text, /** @type {string} */ name) =>
    html`<button
      class="copy"
      aria-label=${texts.say('copyField', { name })}
      @click=${() => act.copy(text)}
    >
      ${copied === text ? texts.say('copied') : texts.say('copy')}
    </button>`;
  const field = (
    /** @type {Key} */ key,
    /** @type {unknown} */ value,
    /** @type {string} */ text,
  ) => html`
    <dt>${texts.say(key)}</dt>
    <dd class=${key}><div class="value">${value}</div>${copyButton(text, texts.say(key))}</dd>`;
  const given = (/** @type {Key} */ key, /** @type {string | undefined} */ text) =>
    text === undefined ? nothing : field(key, text, text);
  const when = (/** @type {Key} */ key, /** @type {string | undefined} */ iso) =>
    iso === undefined ? nothing : field(key, times(iso, texts), iso);
  return html`
    <header>
      <h2 id="detail-name">${id}</h2>
      <button
        class="icon"
        aria-label=${texts.say('close')}
        title="${texts.say('close')} (Esc)"
        @click=${act.close}
      >
        ${glyph('close')}
      </button>
    </header>
    ${entry ? nothing : html`<p class="note">${texts.say(last ? 'gone' : 'unknown')}</p>`}
    ${
      run
        ? html`<dl class=${run.status}>
          ${field('run', run.id, run.id)}
          ${field('status', statusWord(run.status, texts), run.status)}
          ${
            run.progress === undefined
              ? nothing
              : field('progress', progressBar(run.progress, texts), String(run.progress))
          }
          ${given('task', run.task_id)} ${given('agent', run.agent)}
          ${when('started', run.started_at)} ${when('ended', run.completed_at)}
          ${entry ? spans(entry, moment, texts) : nothing}
          ${given('error', run.error)}
        </dl>`
        : nothing
    }
    ${
      entry
        ? html`<footer>
          <button class="wide" @click=${() => act.copy(json(entry.run))}>
            ${texts.say(copied === json(entry.run) ? 'copied' : 'copyAll')}
          </button>
          ${isActive(entry.run) || bell ? bellButton(bell, bellPossible, texts, act) : nothing}
        </footer>`
        : nothing
    }`;
}

/** An end that has come already is none to wait for. @param {LiveRun} run */
const isActive = ({ status }) => status === 'queued' || status === 'running';

/** @param {boolean} bell @param {boolean} possible @param {Texts} texts @param {Actions} act */
const bellButton = (bell, possible, texts, act) => html`<button
  class="wide"
  aria-pressed=${bell}
  ?disabled=${!possible}
  title=${texts.say('bellHint')}
  @click=${act.toggleBell}
>
  ${glyph('bell')}${texts.say(possible ? 'bellRun' : 'bellDenied')}
</button>`;

/** @param {Entry} entry @param {Moment} moment @param {Texts} texts */
const spans = (entry, moment, texts) => html`
  <dt>${texts.say('elapsed')}</dt>
  <dd class="number">${elapsed(moment.elapsed(entry), texts)}</dd>
  <dt>${texts.say('changed')}</dt>
  <dd class="number">
    ${idle(moment.idle(entry), texts)}
    ${entry.run.changed_at ? times(entry.run.changed_at, texts) : nothing}
  </dd>`;

/** @param {string} iso @param {Texts} texts */
const times = (iso, texts) => html`
  <span class="time">${texts.local(Date.parse(iso))}</span>
  <span class="time">${iso.slice(0, 19).replace('T', ' ')} UTC</span>`;

/** As the API has it. @param {LiveRun} run */
function json(run) {
  const { changed_at, loaded_at, ...fields } = run;
  return JSON.stringify(fields, undefined, 2);
}
