// What the browser keeps for the page. Where the user forbids it, it lasts until the next load.

/** @type {Record<string, string>} */
const memory = {};

/** @param {'localStorage' | 'sessionStorage'} kind @returns {Record<string, string>} */
export function storage(kind) {
  try {
    return globalThis[kind];
  } catch {
    return memory;
  }
}
