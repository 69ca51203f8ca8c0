// Notifications of the browser: when one run ends, or when any fails, while nobody looks.

import { storage } from './storage.js';

/** @typedef {import('../client.js').Change} Change */

const ANY = 'brain-notify-any';

export class Notifications {
  /** @type {Set<string>} Ids of the runs whose end is wanted. */ #wanted = new Set();
  #any = false;

  /** @param {import('./texts.js').Texts} texts @param {(id: string) => void} open */
  constructor(texts, open) {
    this.#texts = texts;
    this.#open = open;
    this.#any =
      this.isPossible && Notification.permission === 'granted' && !!storage('localStorage')[ANY];
  }

  #texts;
  #open;

  /** Browsers permit them only to pages of https and of this machine. */
  get isPossible() {
    return 'Notification' in globalThis && isSecureContext && Notification.permission !== 'denied';
  }

  get any() {
    return this.#any;
  }

  /** @param {string} id */
  wants(id) {
    return this.#wanted.has(id);
  }

  async toggleAny() {
    this.#any = !this.#any && (await permitted());
    const kept = storage('localStorage');
    if (this.#any) kept[ANY] = '1';
    else delete kept[ANY];
  }

  /** @param {string} id */
  async toggle(id) {
    if (!this.#wanted.delete(id) && (await permitted())) this.#wanted.add(id);
  }

  /** @param {readonly Change[]} changes */
  tell(changes) {
    for (const { id, run, previous, news } of changes) {
      const ended = run?.status === 'completed' || run?.status === 'failed';
      // What was loaded, or is received again, is not news.
      if (!run || !ended || !news || run.status === previous?.status) continue;
      const wanted = this.#wanted.delete(id);
      if (document.hidden && (wanted || (this.#any && run.status === 'failed'))) {
        const key = run.status === 'failed' ? 'notifyFailed' : 'notifyCompleted';
        this.#show(id, this.#texts.say(key, { run: id }), run.error ?? '');
      }
    }
  }

  /** @param {string} id @param {string} title @param {string} body */
  #show(id, title, body) {
    try {
      const notification = new Notification(title, { body, tag: id, lang: this.#texts.tag });
      notification.onclick = () => {
        window.focus();
        this.#open(id);
        notification.close();
      };
    } catch {
      // Chromium on Android permits them only to a service worker.
    }
  }
}

/** Asks the user the first time. */
async function permitted() {
  return (await Notification.requestPermission()) === 'granted';
}
