// The page of the sandbox: shows what comes by server-sent events, starts drills, searches. No library, nothing from elsewhere.

const SHOWN_EVENTS = 200, LIT_MS = 150;
const isOwnApi = document.documentElement.classList.contains("own-api");
const find = id => document.getElementById(id);
const buttons = [...document.querySelectorAll("#drills button")];
const clock = at => at ? new Date(at).toLocaleTimeString([], { hourCycle: "h23" }) : "–";
const seconds = ms => `${(ms / 1000).toFixed(2)} s`;
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const number = value => value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: 1 });

/** A value and its unit, in three digits or so. */
function bytes(value) {
  if (value == null) return ["–", "kB"];
  const [by, unit] = value < 999_500 ? [1e3, "kB"] : value < 999.5e6 ? [1e6, "MB"] : [1e9, "GB"];
  return [(value / by).toFixed(value && value / by < 99.95 ? 1 : 0), unit];
}
function duration(s) {
  if (s == null) return ["–", "s"];
  const size = Math.abs(s);
  if (size < 0.9995) return size ? [(s * 1000).toFixed(0), "ms"] : ["0", "s"];
  return size < 99.5 ? [s.toFixed(size < 9.95 ? 1 : 0), "s"] : size < 5940 ? [(s / 60).toFixed(0), "min"] : [(s / 3600).toFixed(1), "h"];
}

function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text ?? "–";
  element.className = className;
  return element;
}

function row(tag, ...cells) {
  const element = document.createElement(tag);
  element.append(...cells);
  return element;
}

/** Writes only what is another, so that nothing blinks and no reader of the screen is told twice. */
function say(element, text, className = element.className) {
  if (element.textContent !== text) element.textContent = text;
  if (element.className !== className) element.className = className;
}

/** Puts values into a station's places, by name. */
function put(station, values) {
  for (const [name, value] of Object.entries(values)) {
    const place = find(station).querySelector(`[data-is=${name}]`);
    say(place, String(value ?? "–"));
    place.title = place.tagName === "DD" ? place.textContent : "";
  }
}

/** Shows items by their text as a key: what is there already stays, with the focus that may be in it. */
function list(parent, items, build) {
  const there = new Map([...parent.children].map(element => [element.key, element]));
  const shown = items.map(item => {
    const key = JSON.stringify(item), element = there.get(key) ?? build(item);
    element.key = key;
    there.delete(key);
    return element;
  });
  for (const element of there.values()) element.remove();
  shown.forEach((element, at) => { if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] ?? null); });
}

// What passes lights its stations one after the other, although it passes within milliseconds: an eye has to follow.
const waiting = [];
let isLighting = false;
function light(...stations) {
  for (const [station, className] of stations) if (waiting.length < 12) waiting.push([find(station), className]);
  if (!isLighting) next();
}
function next() {
  const [station, className] = waiting.shift() ?? [];
  isLighting = Boolean(station);
  if (!station) return;
  station.classList.add(className);
  setTimeout(() => station.classList.remove(className), LIT_MS * 2);
  setTimeout(next, LIT_MS);
}

let changes = 0;
/** What an event means for the stations, beyond its words. */
const meaning = {
  changed(event) {
    put("api", { changes: ++changes, changed: `post ${event.fields.id}` });
    return [["api", "lit"]];
  },
  unchanged(event) {
    put("importer", { polled: clock(event.at) });
    return [["importer", "passed"]];
  },
  appended(event) {
    put("importer", { polled: clock(event.at) });
    return [["api", "lit"], ["importer", "lit"], ["archive", "lit"]];
  },
  announced(event) {
    put("queue", { sent: `object ${event.fields.sequence}`, sent_at: clock(event.at) });
    return [["queue", "lit"]];
  },
  received: () => [["transformer", "lit"]],
  applied(event) {
    put("transformer", { applied: `object ${event.fields.sequence}` });
    put("table", { committed: clock(event.at) });
    return [["transformer", "lit"], ["table", "lit"]];
  },
  "daemon ended": event => [[event.fields.daemon, "hurt"]],
  "daemon started again": event => [[event.fields.daemon, "lit"]],
};

function showEvent({ event, tone, text }) {
  const stations = event && meaning[event.message]?.(event);
  // Those that a page gets when it is opened have passed long ago.
  if (stations && Date.now() - Date.parse(event.at) < 3000) light(...stations);
  if (tone === "quiet") return;
  const time = make("time", event ? clock(event.at) : "");
  find("feed").prepend(row("li", time, make("span", event?.who ?? ""), make("span", text, tone === "plain" ? "" : tone)));
  while (find("feed").children.length > SHOWN_EVENTS) find("feed").lastChild.remove();
}

const toneOf = state =>
  /^(ready|standing by)/.test(state) ? "good" : /^(holding|down)/.test(state) ? "bad" : "warning";

function showDaemon(name, { pid, restarts, state, dependencies, memory_bytes, retries }) {
  const [, word, why] = state.match(/^([^:]*):? ?([^]*)$/);
  const memory = memory_bytes == null ? "–" : bytes(memory_bytes).join(" ");
  put(name, { state: word, pid, restarts: restarts === 1 ? "once" : plural(restarts, "time"), memory, retries: number(retries) });
  const station = find(name);
  say(station.querySelector("[data-is=state]"), word, `big state ${toneOf(state)}`);
  say(station.querySelector(".why"), why);
  station.querySelector(".why").title = why;
  list(station.querySelector(".deps"), dependencies, ({ name, state }) => {
    const item = row("li", name, make("span", `: ${state}`, "hidden"));
    item.className = state.split(" ")[0];
    item.title = state;
    return item;
  });
}

function showLook(look) {
  if (!look) return;
  const { api, importer, archive, queue, transformer, table, ledger } = look;
  for (const [name, part] of Object.entries({ api, archive, queue, table })) {
    say(find(name).querySelector(".why"), part.error ? `does not answer: ${part.error}` : "");
  }
  showDaemon("importer", importer);
  showDaemon("transformer", transformer);
  if (api.address) put("api", api);
  else if (!api.error) put("api", { posts: number(api.posts), etag: api.etag?.replace(/^W\/"|"$/g, "") });
  if (!archive.error) {
    put("archive", { end: archive.end || "–" });
    const lines = archive.objects.toReversed().slice(0, 5).flatMap(({ sequence, key, bytes: size, at }) => {
      const name = make("dt", `${sequence}`);
      name.title = key;
      return [name, make("dd", `${bytes(size).join(" ")}, ${clock(at)}`)];
    });
    find("archive").querySelector("dl").replaceChildren(...lines);
  }
  if (!queue.error) put("queue", { waiting: queue.waiting, unit: queue.waiting === 1 ? "message" : "messages", in_flight: queue.in_flight });
  const lag = archive.end - table.position;
  if (!table.error) put("table", { position: table.position, rows: number(table.rows), lag: Number.isNaN(lag) ? "–" : plural(lag, "object") });
  showLedger(ledger);

  const states = [importer.state, transformer.state];
  const isFaulty = [api, archive, queue, table].some(part => part.error) || states.some(state => toneOf(state) !== "good");
  // What is down is started again; only a hold waits for somebody.
  const tone = states.some(state => state.startsWith("holding")) ? "bad" : isFaulty || lag !== 0 || archive.end === 0 ? "warning" : "good";
  const warning = archive.end === 0 ? "nothing is archived yet" : "healing";
  const words = { good: "all is applied, both daemons are ready", warning, bad: "a person is needed" };
  say(find("whole"), words[tone], `state ${tone}`);
}

/** The history: a column's name, its value, and what the name means. */
const COLUMNS = [
  ["object", o => o.sequence],
  ["fetched", o => clock(o.fetched_at), "when its fetch began"],
  ["loaded", o => clock(o.loaded_at), "when its transaction began"],
  ["took", o => o.fetched_at ? duration((Date.parse(o.loaded_at) - Date.parse(o.fetched_at)) / 1000).join(" ") : "–", "from the fetch to the table"],
  ["size", o => o.bytes == null ? "–" : bytes(o.bytes).join(" ")],
  ["new", o => o.inserted, "rows inserted"],
  ["changed", o => o.updated, "rows updated"],
  ["same", o => o.unchanged, "records whose row is as before"],
  ["absent", o => o.absent, "rows that the API has no more"],
  ["aside", o => o.quarantined, "records set aside in quarantine"],
  ["outcome", o => o.outcome],
  ["observation", o => o.observation, "the end of its id, which stands in the log lines of both daemons: press it to see all"],
];

for (const [name, , meaning] of COLUMNS) {
  const head = make("th", name);
  head.scope = "col";
  head.title = meaning ?? "";
  document.querySelector("#history thead tr").append(head);
}

function showObject(object) {
  return row("tr", ...COLUMNS.map(([label, value]) => {
    const text = value(object), isCount = typeof text === "number" && label !== "object";
    const cell = make("td", isCount ? number(text) : text, text === 0 ? "zero" : "");
    cell.dataset.label = label;
    if (label === "outcome") cell.classList.add(text === "loaded" ? "quiet" : "warning"), cell.title = object.reason ?? "";
    if (label === "aside" && text) cell.classList.add("warning");
    if (label === "observation" && text) cell.replaceChildren(idButton(text, text.slice(-8)));
    return cell;
  }));
}

function idButton(id, text) {
  const button = make("button", text, "id");
  button.title = id;
  button.setAttribute("aria-label", `find observation ${id}`);
  button.addEventListener("click", () => trace(id));
  return button;
}

function showLedger({ error, objects, quarantine, quarantined }) {
  say(find("ledger-why"), error ? `The ledger cannot be read: ${error}` : "");
  if (error) return;
  list(document.querySelector("#history tbody"), objects, showObject);
  find("history").nextElementSibling.hidden = objects.length > 0;
  if (objects[0]) put("table", { as_of: clock(objects[0].fetched_at) });
  list(find("quarantine"), quarantine, showQuarantined);
  find("quarantine").nextElementSibling.hidden = quarantine.length > 0;
  const isCut = quarantined > quarantine.length;
  say(find("quarantined"), isCut ? `the last ${quarantine.length} of ${number(quarantined)}` : quarantined ? number(quarantined) : "");
}

function showQuarantined({ sequence, index, id, outcome, reason, raw }) {
  const post = id == null ? "" : `, ${isOwnApi ? "id" : "post"} ${id}`;
  const where = `object ${sequence}, ${index == null ? `${outcome} as a whole` : `record ${index}${post}`}`;
  const item = row("li", make("p", where, "soft"), make("p", reason, "warning"));
  if (raw) item.append(make("p", new TextDecoder().decode(Uint8Array.from(atob(raw), c => c.charCodeAt(0))), "mono"));
  return item;
}

const svgElement = name => document.createElementNS("http://www.w3.org/2000/svg", name);

/** Rates and lag: where they go, their name, and a value with its unit. */
const TILES = [
  ["objects", "Objects a minute", "", v => [number(v), v === 1 ? "object" : "objects"]],
  ["rows", "Rows a minute", "", v => [number(v), v === 1 ? "row" : "rows"]],
  ["bytes", "Bytes a minute", "", bytes],
  ["lag-objects", "Lag in objects", "lag", v => [number(v), v === 1 ? "object" : "objects"]],
  ["lag-seconds", "Oldest waits", "lag", duration],
];

for (const [id, title, className] of TILES) {
  const svg = svgElement("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("preserveAspectRatio", "none");
  const big = row("p", make("span", "–"), " ", make("small", ""));
  big.className = "big";
  const axis = row("p", make("span", "−10 min"), make("span", ""), make("span", "now"));
  axis.className = "axis";
  const tile = row("article", make("h2", title), big, svg, axis);
  tile.id = id;
  tile.className = className;
  find("trend").append(tile);
}
find("trend").append(make("p", "", "why bad"));
find("trend").lastChild.id = "trend-why";

/** Bars, one a step: the height is the value, a hairline is none, a gap is not known. */
function draw(svg, values, end, stepSecs, format) {
  const known = values.filter(value => value != null), most = Math.max(...known, 0);
  svg.setAttribute("viewBox", `0 0 ${values.length * 4} 40`);
  while (svg.children.length < values.length) {
    const bar = svgElement("rect");
    bar.append(svgElement("title"));
    svg.append(bar);
  }
  values.forEach((value, at) => {
    const bar = svg.children[at], height = value == null ? 0 : value && most ? Math.max(2, 40 * value / most) : 1;
    for (const [name, it] of Object.entries({ x: at * 4, y: 40 - height, width: 3, height, class: value ? "" : "none" })) bar.setAttribute(name, it);
    bar.firstChild.textContent = `${clock((end - (values.length - 1 - at) * stepSecs) * 1000)}: ${value == null ? "not known" : format(value).join(" ")}`;
  });
  return most;
}

function showTrend(trend) {
  if (!trend) return;
  say(find("trend-why"), trend.error ? `The rates are not known: ${trend.error}` : "");
  for (const [id, title, , format] of TILES) {
    const { now, steps } = trend[id.replace("-", "_")] ?? {};
    const tile = find(id), [value, unit] = format(now);
    say(tile.querySelector(".big span"), value);
    say(tile.querySelector(".big small"), unit);
    if (!steps) continue;
    const most = draw(tile.querySelector("svg"), steps, trend.end, trend.step_secs, format);
    const words = most ? `most ${format(most).join(" ")}` : "none";
    say(tile.querySelector(".axis :nth-child(2)"), words);
    tile.querySelector("svg").setAttribute("aria-label", `${title}, in steps of ${trend.step_secs} s over ten minutes: ${words}`);
  }
}

function showDrill(drill) {
  const isRunning = drill !== null && drill.outcome === null;
  for (const button of buttons) {
    button.setAttribute("aria-disabled", isRunning);
    button.setAttribute("aria-current", isRunning && button.name === drill.drill);
  }
  // For whoever waits for the end of a drill without reading.
  find("result").dataset.drill = drill?.drill ?? "";
  find("result").dataset.state = !drill ? "" : isRunning ? "running" : drill.outcome.Ok ? "healed" : "failed";
  if (!drill) return;
  const name = buttons.find(button => button.name === drill.drill)?.textContent ?? drill.drill;
  const { Ok: report, Err: error } = drill.outcome ?? {};
  if (isRunning) say(find("result"), `${name}: running`, "warning");
  else if (error) say(find("result"), `${name}: not healed. ${error}`, "bad");
  else {
    const { healed_ms, rows, position } = report;
    const whole = `${plural(rows, "row")}, ${isOwnApi ? "all that is archived" : "equal to the API"}, position ${position}, the end of the archive.`;
    say(find("result"), `${name}: healed in ${seconds(healed_ms)}. ${whole}`, "good");
  }
  list(find("steps"), drill.steps, ({ elapsed_ms, who, text }) =>
    row("li", make("span", `+${seconds(elapsed_ms)}`), make("span", who === "drill" ? text : `${who}: ${text}`)));
}

for (const button of buttons) {
  button.addEventListener("click", async () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    try {
      const answer = await fetch(`/drills/${button.name}`, { method: "POST" });
      // How a drill ends comes with the events; here only that it did not begin.
      if (answer.status === 404 || answer.status === 409) say(find("result"), await answer.text(), "warning");
    } catch (error) {
      say(find("result"), `The sandbox does not answer: ${error.message}`, "bad");
    }
  });
}

find("search").addEventListener("submit", event => {
  event.preventDefault();
  trace(find("part").value.trim());
});

/** Shows where an observation stands, in a dialog: nothing of the page moves, and Escape leads back to where one was. */
async function trace(part) {
  let found;
  try {
    const answer = await fetch(`/observations/${encodeURIComponent(part)}`);
    found = answer.ok ? showFound(part, await answer.json()) : [make("p", await answer.text(), "warning")];
  } catch (error) {
    found = [make("p", `The sandbox does not answer: ${error.message}`, "bad")];
  }
  find("found").replaceChildren(...found);
  if (!find("trace").open) find("trace").showModal();
  find("trace").scrollTop = 0;
}

function showFound(part, { matches, found }) {
  if (!matches.length) return [make("p", `No log line and no line of the ledger knows an observation with “${part}” in its id.`, "soft")];
  if (!found) {
    const several = matches.map(({ observation, sequence }) =>
      row("li", make("span", `object ${sequence ?? "?"}`), make("span", ""), idButton(observation, observation)));
    return [make("p", `Several observations have “${part}” in their ids, the newest first. Which one?`, "soft"), lines(several)];
  }
  const { observation, sequence, ledger, metadata, log } = found;
  return [
    make("p", observation, "mono"), make("p", `object ${sequence ?? "?"}`, "soft"), way(found),
    make("h3", "Log lines of both daemons"), log.length ? lines(log.map(showLine)) : make("p", "None.", "soft"),
    make("h3", "Line of the ledger"), ledger ? values(ledger) : make("p", "Not applied yet.", "soft"),
    make("h3", "Metadata in the archive"), metadata ? values(metadata) : make("p", "The archive has no such object.", "soft"),
  ];
}

/** How far it has come, a step each, with the time where it is known. */
function way({ ledger, metadata, log }) {
  const logged = message => log.find(line => line.message === message)?.timestamp;
  const steps = [
    ["fetched", metadata?.["fetched-at"], "unknown"],
    ["appended", logged("appended"), metadata ? "it is there" : "unknown"],
    ["announced", logged("announced"), "no log line"],
    ["received", logged("received"), "no log line"],
    [ledger?.outcome ?? "applied", ledger?.loaded_at, "not yet"],
  ];
  const way = row("ol", ...steps.map(([word, at, otherwise]) => {
    const item = row("li", make("b", word), make("span", at ? clock(at) : otherwise));
    item.className = !at ? "" : word === "quarantined" || word === "skipped" ? "odd" : "done";
    return item;
  }));
  way.id = "way";
  return way;
}

function showLine({ timestamp, who, message, level, target, observation, ...fields }) {
  const tone = { WARN: "warning", ERROR: "bad" }[level] ?? "";
  const rest = Object.entries(fields).map(([name, value]) => `${name}=${value}`).join(" ");
  const words = row("span", make("span", message, tone), " ", make("span", rest, "mono"));
  return row("li", make("time", `${clock(timestamp)}.${timestamp.slice(20, 23)}`, "soft"), make("span", who, "soft"), words);
}

function lines(items) {
  const list = row("ol", ...items);
  list.className = "lines";
  return list;
}

function values(fields) {
  const isCode = name => /id$|sha256|observation|previous|key/.test(name);
  return row("dl", ...Object.entries(fields).flatMap(([name, value]) => [make("dt", name), make("dd", value, isCode(name) ? "mono" : "")]));
}

const source = new EventSource("/events");
source.addEventListener("open", () => {
  // A new connection tells everything anew.
  changes = 0;
  find("feed").replaceChildren();
});
source.addEventListener("event", message => showEvent(JSON.parse(message.data)));
source.addEventListener("look", message => showLook(JSON.parse(message.data)));
source.addEventListener("trend", message => showTrend(JSON.parse(message.data)));
source.addEventListener("drill", message => showDrill(JSON.parse(message.data)));
source.addEventListener("error", () => say(find("whole"), "no connection to the sandbox; what is shown is old", "state bad"));
