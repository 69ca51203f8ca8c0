// The keys, and what each does. A text field keeps its keys, but for Escape and the way back.

/**
 * @typedef {import('./texts.js').Key} Key
 * @typedef {'search' | 'help' | 'next' | 'previous' | 'first' | 'last' | 'pageUp' | 'pageDown'
 *   | 'open' | 'escape' | 'filter' | 'pause'} Action
 */

/** @type {readonly { keys: readonly string[], action: Action, shown?: string }[]} */
const KEYS = [
  { keys: ['/'], action: 'search' },
  { keys: ['j', 'ArrowDown'], action: 'next' },
  { keys: ['k', 'ArrowUp'], action: 'previous' },
  { keys: ['Home'], action: 'first' },
  { keys: ['End'], action: 'last' },
  { keys: ['PageUp'], action: 'pageUp' },
  { keys: ['PageDown'], action: 'pageDown' },
  { keys: ['Enter'], action: 'open' },
  { keys: ['Escape'], action: 'escape' },
  { keys: ['1', '2', '3', '4'], action: 'filter' },
  { keys: ['p'], action: 'pause' },
  { keys: ['?'], action: 'help' },
];

/** For the list of keys. @type {readonly { keys: readonly string[], text: Key }[]} */
export const HELP = [
  { keys: ['/'], text: 'keySearch' },
  { keys: ['j', '↓', 'k', '↑'], text: 'keyMove' },
  { keys: ['Home', 'End'], text: 'keyEnds' },
  { keys: ['PgUp', 'PgDn'], text: 'keyPages' },
  { keys: ['Enter'], text: 'keyOpen' },
  { keys: ['Esc'], text: 'keyEscape' },
  { keys: ['1', '2', '3', '4'], text: 'keyFilter' },
  { keys: ['p'], text: 'keyPause' },
  { keys: ['?'], text: 'keyHelp' },
];

/** @type {ReadonlyMap<string, Action>} */
const ACTIONS = new Map(KEYS.flatMap(({ keys, action }) => keys.map((key) => [key, action])));

/** In a search field: leave it, for the list. @type {readonly Action[]} */
const FROM_FIELD = ['escape', 'next', 'open'];

/** @param {(action: Action, key: string) => boolean} act Returns whether it did anything. */
export function listen(act) {
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const action = ACTIONS.get(event.key);
    if (!action) return;
    const target = /** @type {Element} */ (event.target);
    if (target.matches('input') && (!FROM_FIELD.includes(action) || event.key.length === 1)) return;
    // A button, a link and an open dialog know what Enter means; the dialog knows Escape, too.
    if (action === 'open' && target.closest('button, a, form, dialog')) return;
    if (target.closest('dialog') && action !== 'help') return;
    if (act(action, event.key)) event.preventDefault();
  });
}
