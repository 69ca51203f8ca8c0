// Every text of the page, in English and simplified Chinese, and how numbers and times are written.

/** {name} stands for a value; {name:run|runs} for a word by a number, which may be one. */
export const TEXTS = {
  title: { en: 'Brain', zh: 'Brain' },
  runs: { en: 'Runs', zh: '运行' },

  queued: { en: 'Queued', zh: '排队' },
  running: { en: 'Running', zh: '运行中' },
  completed: { en: 'Completed', zh: '已完成' },
  failed: { en: 'Failed', zh: '失败' },
  quiet: { en: 'Quiet', zh: '无动静' },
  quietFor: { en: 'quiet {time}', zh: '{time}无动静' },
  quietHint: {
    en: 'Running, and without a change for {time} or longer: the worker may be dead',
    zh: '运行中，但至少 {time} 没有变化：工作进程可能已经退出',
  },
  filterHint: {
    en: 'Show only these: {name} ({key})',
    zh: '只显示“{name}”（按键 {key}）',
  },

  search: { en: 'Search run, task, agent, error', zh: '搜索运行、任务、智能体、错误' },
  searchHint: { en: 'Search (/)', zh: '搜索（按键 /）' },

  run: { en: 'Run', zh: '运行' },
  status: { en: 'Status', zh: '状态' },
  progress: { en: 'Progress', zh: '进度' },
  task: { en: 'Task', zh: '任务' },
  agent: { en: 'Agent', zh: '智能体' },
  elapsed: { en: 'Elapsed', zh: '用时' },
  changed: { en: 'Last change', zh: '上次变化' },
  error: { en: 'Error', zh: '错误' },
  started: { en: 'Started', zh: '开始' },
  ended: { en: 'Ended', zh: '结束' },
  none: { en: '–', zh: '–' },
  atLeast: { en: '≥ {time}', zh: '≥ {time}' },
  ago: { en: '{time} ago', zh: '{time}前' },
  atLeastAgo: { en: '≥ {time} ago', zh: '≥ {time}前' },

  connecting: { en: 'Connecting…', zh: '正在连接…' },
  connectingHint: { en: 'The page loads the runs.', zh: '页面正在加载运行。' },
  live: { en: 'Live', zh: '实时' },
  liveHint: {
    en: 'All changes up to {time} are here.',
    zh: '截至 {time} 的所有变化都已显示。',
  },
  polled: { en: 'Live, polled', zh: '实时（轮询）' },
  polledHint: {
    en: 'Brain polls the database and does not stream it: {reason}',
    zh: 'Brain 正在轮询数据库，没有使用流复制：{reason}',
  },
  behind: { en: 'Behind by {time}', zh: '滞后 {time}' },
  behindShort: { en: 'Behind', zh: '滞后' },
  behindHint: {
    en: 'Brain has no news from the database since {time}. {reason}',
    zh: '自 {time} 起 Brain 没有收到数据库的消息。{reason}',
  },
  away: { en: 'Disconnected since {time}', zh: '自 {time} 起断开' },
  awayHint: {
    en: 'The page tries again. What it shows is as of {time}.',
    zh: '页面正在重试。显示的是 {time} 的内容。',
  },
  unreachable: { en: 'Not connected', zh: '未连接' },
  unreachableHint: {
    en: 'Brain does not answer. The page tries again.',
    zh: 'Brain 没有应答。页面正在重试。',
  },
  refused: { en: 'Ended', zh: '已结束' },
  refusedHint: {
    en: 'Brain does not accept this page: {reason} ({code})',
    zh: 'Brain 不接受此页面：{reason}（{code}）',
  },
  again: { en: 'Try again', zh: '重试' },

  tokenWanted: { en: 'Token wanted', zh: '需要令牌' },
  tokenHint: {
    en: 'Where BRAIN_JWT_SECRET is set, `brain token` prints one. The tab keeps it until closed.',
    zh: '此 Brain 需要令牌：在设置了 BRAIN_JWT_SECRET 的地方，`brain token` 会打印一个。页面会保存它，直到标签页关闭。',
  },
  tokenLabel: { en: 'Token', zh: '令牌' },
  tokenSend: { en: 'Connect', zh: '连接' },

  empty: { en: 'No runs yet', zh: '还没有运行' },
  emptyHint: {
    en: 'Paste these into a terminal, one after the other, and watch this page:',
    zh: '把下面的命令依次粘贴到终端，并观察此页面：',
  },
  emptyCreate: { en: 'Create a run', zh: '创建一个运行' },
  emptyStart: { en: 'Start it', zh: '启动它' },
  emptyEnd: { en: 'Complete it', zh: '完成它' },
  noMatch: { en: 'No run matches', zh: '没有匹配的运行' },
  noMatchHint: {
    en: 'Of {count} {count:run|runs}, none matches the search and the filters.',
    zh: '共 {count} 个运行，都不符合搜索和筛选条件。',
  },
  clear: { en: 'Show all runs', zh: '显示所有运行' },

  newer: { en: '↑ {count} newer', zh: '↑ {count} 个新运行' },
  paused: { en: 'Paused · {count} {count:change|changes}', zh: '已暂停 · {count} 个变化' },
  pausedHint: {
    en: 'The display is paused, not the data. Continue (p)',
    zh: '显示已暂停，数据没有。继续（按键 p）',
  },

  shown: { en: '{count} {count:run|runs}', zh: '{count} 个运行' },
  shownOf: { en: '{count} of {total} {total:run|runs}', zh: '共 {total} 个运行，显示 {count} 个' },
  trimmed: {
    en: 'Of the finished runs, only {count} are kept here.',
    zh: '已结束的运行在此只保留 {count} 个。',
  },
  keys: { en: 'Keys', zh: '快捷键' },
  keysHint: { en: 'Keyboard shortcuts (?)', zh: '键盘快捷键（按键 ?）' },
  close: { en: 'Close', zh: '关闭' },

  copy: { en: 'Copy', zh: '复制' },
  copyField: { en: 'Copy: {name}', zh: '复制：{name}' },
  copyAll: { en: 'Copy as JSON', zh: '复制为 JSON' },
  copied: { en: 'Copied', zh: '已复制' },
  gone: { en: 'This run has been deleted.', zh: '此运行已被删除。' },
  unknown: {
    en: 'This run is not among those that the page keeps.',
    zh: '此运行不在页面保留的运行之中。',
  },

  bellAny: { en: 'Notify me of any failure', zh: '有运行失败时通知我' },
  bellRun: { en: 'Notify me when it ends', zh: '结束时通知我' },
  bellDenied: {
    en: 'The browser does not permit notifications of this page',
    zh: '浏览器不允许此页面发送通知',
  },
  bellHint: { en: 'Only while this tab is hidden', zh: '仅当此标签页隐藏时' },
  notifyFailed: { en: '{run} failed', zh: '{run} 失败' },
  notifyCompleted: { en: '{run} is completed', zh: '{run} 已完成' },

  keySearch: { en: 'search', zh: '搜索' },
  keyMove: { en: 'next, previous run', zh: '下一个、上一个运行' },
  keyEnds: { en: 'first, last run', zh: '第一个、最后一个运行' },
  keyPages: { en: 'one page up, down', zh: '上一页、下一页' },
  keyOpen: { en: 'details of the run', zh: '运行的详情' },
  keyEscape: { en: 'close, clear', zh: '关闭、清除' },
  keyFilter: { en: 'filter by status', zh: '按状态筛选' },
  keyPause: { en: 'pause the display', zh: '暂停显示' },
  keyHelp: { en: 'these keys', zh: '这些快捷键' },

  saySummary: {
    en: '{state}. {running} running, {queued} queued, {failed} failed.',
    zh: '{state}。{running} 个运行中，{queued} 个排队，{failed} 个失败。',
  },
  day: { en: '{n}d', zh: '{n}天' },
  hour: { en: '{n}h', zh: '{n}小时' },
  minute: { en: '{n}m', zh: '{n}分' },
  second: { en: '{n}s', zh: '{n}秒' },
};

/** @typedef {keyof typeof TEXTS} Key */
/** @typedef {'en' | 'zh'} Language */

/** @param {string | null} asked By `?lang=`. @param {readonly string[]} preferred */
export function chooseLanguage(asked, preferred) {
  for (const each of [asked ?? '', ...preferred]) {
    const language = each.slice(0, 2).toLowerCase();
    if (language === 'zh' || language === 'en') return language;
  }
  return 'en';
}

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** The words of one language. */
export class Texts {
  /** @param {Language} language */
  constructor(language) {
    this.language = language;
    this.tag = language === 'zh' ? 'zh-Hans' : 'en';
    this.#number = new Intl.NumberFormat(this.tag, { maximumFractionDigits: 1 });
    this.#time = new Intl.DateTimeFormat(this.tag, { timeStyle: 'medium', hour12: false });
    const fields = /** @type {const} */ ({
      year: 'numeric',
      month: 'short',
      day: 'numeric',
      hour: '2-digit',
      minute: '2-digit',
      second: '2-digit',
      hour12: false,
    });
    this.#date = new Intl.DateTimeFormat(this.tag, { ...fields, timeZoneName: 'short' });
  }

  #number;
  #time;
  #date;

  /** @param {Key} key @param {Record<string, string | number>} [values] */
  say(key, values = {}) {
    const write = (/** @type {string | number} */ value) =>
      typeof value === 'number' ? this.#number.format(value) : `${value}`;
    return TEXTS[key][this.language].replace(
      /\{(\w+)(?::(\w+)\|(\w+))?\}/g,
      (_, name, one, more) =>
        one === undefined ? write(values[name]) : values[name] === 1 ? one : more,
    );
  }

  /** @param {number} value */
  number(value) {
    return this.#number.format(value);
  }

  /**
   * The time of day, with the date if that is another day.
   *
   * @param {number} ms @param {number} now
   */
  time(ms, now) {
    const format = Math.abs(now - ms) < DAY / 2 ? this.#time : this.#date;
    return format.format(ms);
  }

  /** With the zone named. @param {number} ms */
  local(ms) {
    return this.#date.format(ms);
  }

  /** Two units: 3m 12s. @param {number} ms */
  duration(ms) {
    const [first, second] = units(ms);
    return second
      ? `${this.#unit(first)}${this.#between}${this.#unit(second, true)}`
      : this.#unit(first);
  }

  /** The larger unit alone, for what need not tick. @param {number} ms */
  about(ms) {
    return this.#unit(units(ms)[0]);
  }

  get #between() {
    return this.language === 'zh' ? '' : ' ';
  }

  /** @param {readonly [Key, number]} unit */
  #unit([key, n], padded = false) {
    return this.say(key, { n: padded ? String(n).padStart(2, '0') : String(n) });
  }
}

/** @param {number} ms @returns {[readonly [Key, number], (readonly [Key, number])?]} */
function units(ms) {
  const floor = (/** @type {number} */ value) => Math.floor(value);
  if (ms >= DAY)
    return [
      ['day', floor(ms / DAY)],
      ['hour', floor((ms % DAY) / HOUR)],
    ];
  if (ms >= HOUR)
    return [
      ['hour', floor(ms / HOUR)],
      ['minute', floor((ms % HOUR) / MINUTE)],
    ];
  if (ms >= MINUTE)
    return [
      ['minute', floor(ms / MINUTE)],
      ['second', floor((ms % MINUTE) / SECOND)],
    ];
  return [['second', floor(ms / SECOND)]];
}
