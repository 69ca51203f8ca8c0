// One run in the list, and the parts that the details share with it.

import { html, nothing } from '../vendor/lit-html/lit-html.js';

/**
 * @typedef {import('../client.js').Status} Status
 * @typedef {import('./clock.js').Moment} Moment
 * @typedef {import('./clock.js').Span} Span
 * @typedef {import('./store.js').Entry} Entry
 * @typedef {import('./texts.js').Key} Key
 * @typedef {import('./texts.js').Texts} Texts
 */

/** The columns, in their order; on a phone CSS puts them into two lines. @type {readonly Key[]} */
export const COLUMNS = [
  'run',
  'status',
  'progress',
  'task',
  'agent',
  'elapsed',
  'changed',
  'error',
];

/** The last line of a Python traceback: it says what went wrong. @param {string} error */
const gist = (error) =>
  error.startsWith('Traceback (most recent call last)') && !error.endsWith('[cut]')
    ? (error.trimEnd().split('\n').at(-1) ?? '')
    : error;

/** A symbol of index.html. @param {string} name */
export const glyph = (name) =>
  html`<svg class="glyph" aria-hidden="true"><use href="#glyph-${name}" /></svg>`;

/** @param {Status} status @param {Texts} texts */
export const statusWord = (status, texts) =>
  html`<span class="status ${status}">${glyph(status)}${texts.say(status)}</span>`;

/** @param {number} percent @param {Texts} texts */
export const progressBar = (percent, texts) =>
  html`<progress max="100" .value=${percent} aria-label=${texts.say('progress')}></progress
    ><span class="number">${texts.number(percent)}%</span>`;

/** @param {Span | undefined} span @param {Texts} texts */
export function elapsed(span, texts) {
  if (!span) return texts.say('none');
  const time = texts.duration(span.ms);
  return span.atLeast ? texts.say('atLeast', { time }) : time;
}

/** @param {Span} span @param {Texts} texts */
export const idle = (span, texts) =>
  texts.say(span.atLeast ? 'atLeastAgo' : 'ago', { time: texts.about(span.ms) });

/**
 * @param {Entry} entry @param {number} index @param {boolean} current
 * @param {Moment} moment @param {Texts} texts
 */
export function row(entry, index, current, moment, texts) {
  const { run } = entry;
  const since = moment.idle(entry);
  // On a phone, one of these has the second line.
  const line = run.error ? 'with-error' : run.progress === undefined ? '' : 'with-progress';
  return html`<div
    class="row ${run.status} ${line} ${current ? 'current' : ''}"
    role="row"
    id="row-${index}"
    aria-rowindex=${index + 2}
    aria-selected=${current}
    data-run=${run.id}
  >
    <div role="gridcell" class="cell run" title=${run.id}>${run.id}</div>
    <div role="gridcell" class="cell state">${statusWord(run.status, texts)}</div>
    <div role="gridcell" class="cell progress">
      ${run.progress === undefined ? nothing : progressBar(run.progress, texts)}
    </div>
    <div role="gridcell" class="cell task" title=${run.task_id ?? ''}>${run.task_id ?? ''}</div>
    <div role="gridcell" class="cell agent" title=${run.agent ?? ''}>${run.agent ?? ''}</div>
    <div role="gridcell" class="cell elapsed number">${elapsed(moment.elapsed(entry), texts)}</div>
    <div role="gridcell" class="cell changed number ${entry.quiet ? 'quiet' : ''}">
      ${
        entry.quiet
          ? html`${glyph('quiet')}${texts.say('quietFor', { time: texts.about(since.ms) })}`
          : idle(since, texts)
      }
    </div>
    <div role="gridcell" class="cell error" title=${run.error ?? ''}>${gist(run.error ?? '')}</div>
  </div>`;
}
