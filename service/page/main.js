// The playground: one state, one set of results, and views that show both.

import { ask, RequestFailed } from "./api.js";
import { nothing, resultsOf, vectorOf } from "./compute.js";
import { announce, copyButton } from "./copy_button.js";
import { byId, el, settled } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { decode, encode, exampleIn, TEXTS_MAX } from "./state.js";
import { themeButton } from "./theme_button.js";
import { showTrouble } from "./trouble.js";
import { curlView, searchText } from "./view_curl.js";
import { mapView } from "./view_map.js";
import { matrixView } from "./view_matrix.js";
import { searchView } from "./view_search.js";
import { textsView } from "./view_texts.js";
import { tokensView } from "./view_tokens.js";

const TYPING_MS = 250;
const KEY = "me5-key";

const app = {
  state: null,
  info: null,
  results: nothing(),
  key: () => byId("key").value.trim(),
  changed,
  searchChanged,
  select,
  remove,
};
const views = {
  texts: textsView(app),
  matrix: matrixView(app),
  search: searchView(app),
  map: mapView(app),
  tokens: tokensView(app),
  curl: curlView(app),
};
// What the page waits for: "texts", "search", or both.
const pending = new Set();
let underWay = new AbortController();
let searching = new AbortController();
// The search that results.searchVector is of, as JSON.
let answered = "";

const remember = settled(() => {
  const fragment = encode(app.state);
  history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
}, TYPING_MS);
const compute = settled(run, TYPING_MS);
const computeSearch = settled(runSearch, TYPING_MS);

/** Somebody changed the texts, their roles, or how they are read. */
function changed() {
  owned();
  // What is under way is for places of a list that is another one now.
  underWay.abort();
  wait("texts");
  views.texts.refresh();
  compute();
}

function searchChanged() {
  owned();
  searching.abort();
  wait("search");
  computeSearch();
}

function wait(what) {
  pending.add(what);
  document.body.classList.add("waiting");
}

function arrived(what) {
  pending.delete(what);
  document.body.classList.toggle("waiting", pending.size > 0);
}

/** No example any more: the address now carries the texts themselves. */
function owned() {
  app.state.example = "";
  byId("example").value = "";
  remember();
}

function select(index) {
  if (index === app.state.selected) return;
  app.state.selected = index;
  if (!app.state.example) remember();
  refresh();
}

function remove(index) {
  const { state, results } = app;
  state.texts.splice(index, 1);
  state.selected = Math.max(0, Math.min(state.selected, state.texts.length - 1));
  for (const values of [results.vectors, results.tokens]) values.splice(index, 1);
  results.indices = state.texts.map((_, place) => place).filter((place) => results.vectors[place]);
  results.errors.clear();
  rebuilt();
  byId(state.texts.length ? `text-${Math.min(index + 1, state.texts.length)}` : "add").focus();
  announce(`Removed text ${index + 1}`);
}

/** Texts came or went. */
function rebuilt() {
  views.texts.build();
  refresh();
  changed();
}

function refresh() {
  for (const view of Object.values(views)) view.refresh();
}

function open(state) {
  app.state = state;
  app.results = nothing();
  byId("example").value = state.example;
  byId("truncate").checked = state.truncate;
  views.texts.build();
  views.search.build();
  refresh();
  run();
}

function openExample(name) {
  const { texts, search } = EXAMPLES[name];
  open({ example: name, texts: structuredClone(texts), search, searchInstruction: "", truncate: true, selected: 0 });
  remember();
}

/** A link within the page leaves the fragment alone, which holds the state. */
function goTo(event) {
  event.preventDefault();
  const target = byId(event.currentTarget.hash.slice(1));
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

function openFragment() {
  const found = decode(location.hash);
  if (found) {
    open(found);
    return;
  }
  const name = exampleIn(location.hash);
  openExample(Object.hasOwn(EXAMPLES, name) ? name : Object.keys(EXAMPLES)[0]);
}

/** Ask for everything that is shown. What was asked before and is not there yet is given up. */
async function run() {
  underWay.abort();
  underWay = new AbortController();
  const { signal } = underWay;
  const options = { key: app.key(), signal, truncate: app.state.truncate };
  const started = performance.now();
  wait("texts");
  try {
    app.info ??= await ask("info", options);
    const search = runSearch();
    const found = await resultsOf(structuredClone(app.state.texts), app.info, options);
    await search;
    if (signal.aborted) return;
    const { searchVector, searchError } = app.results;
    app.results = { ...found, searchVector, searchError };
    showTrouble(null, run);
    showDone(Math.round(performance.now() - started));
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    if (!(error instanceof RequestFailed)) throw error;
    showTrouble(error, run);
  }
  refresh();
  arrived("texts");
}

async function runSearch() {
  searching.abort();
  searching = new AbortController();
  const { signal } = searching;
  const options = { key: app.key(), signal, truncate: app.state.truncate };
  wait("search");
  const asked = searchText(app.state);
  try {
    app.results.searchVector = await vectorOf(asked, options);
    app.results.searchError = "";
    answered = JSON.stringify(asked);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    if (!(error instanceof RequestFailed)) throw error;
    // An answer to this very question stays; to another one it would mislead.
    if (answered !== JSON.stringify(asked)) app.results.searchVector = null;
    app.results.searchError = `${error.status || "No answer"}: ${error.message}`;
  }
  views.search.refresh();
  views.curl.refresh();
  arrived("search");
}

function showDone(ms) {
  const { info, results } = app;
  byId("model").textContent = `${info.model_id}/${info.model_version}`;
  byId("facts").textContent =
    `${info.dimension} dimensions · ${info.max_input_length} tokens · ${info.engine} ${info.precision}`;
  const refused = results.errors.size ? `, ${results.errors.size} refused` : "";
  byId("spent").textContent = `${results.indices.length} texts in ${ms} ms${refused}`;
  announce(`${results.indices.length} texts embedded${refused}`);
}

function addTexts(texts, role) {
  const room = TEXTS_MAX - app.state.texts.length;
  const added = texts.slice(0, room);
  app.state.texts.push(...added.map((text) => ({ text, role, instruction: "", lang: "" })));
  rebuilt();
  return added.length;
}

function addMany() {
  const lines = byId("many").value.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const added = addTexts(lines, byId("many-role").value);
  byId("many").value = "";
  byId("many-note").textContent = added < lines.length ? `${lines.length - added} left out: ${TEXTS_MAX} is all.` : "";
  announce(`Added ${added} texts`);
}

function wireUpTexts() {
  const menu = byId("example");
  menu.append(...Object.entries(EXAMPLES).map(([name, { title }]) => el("option", { value: name }, title)));
  menu.addEventListener("change", () => menu.value && openExample(menu.value));
  byId("add").addEventListener("click", () => {
    app.state.selected = app.state.texts.length;
    addTexts([""], "passage");
    byId(`text-${app.state.texts.length}`).focus();
  });
  byId("clear").addEventListener("click", () => {
    Object.assign(app.state, { texts: [], selected: 0 });
    app.results = { ...nothing(), searchVector: app.results.searchVector };
    rebuilt();
    byId("add").focus();
  });
  byId("add-many").addEventListener("click", addMany);
  byId("truncate").addEventListener("change", () => {
    app.state.truncate = byId("truncate").checked;
    changed();
  });
}

/** The key lives as long as the tab, and goes nowhere but into the requests' headers. */
function wireUpKey() {
  const field = byId("key");
  field.value = sessionStorage.getItem(KEY) ?? "";
  const keep = () => {
    if (app.key()) sessionStorage.setItem(KEY, app.key());
    else sessionStorage.removeItem(KEY);
    run();
  };
  field.addEventListener("change", keep);
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keep();
  });
}

function shareLink() {
  const address = new URL(location.href);
  address.hash = encode(app.state);
  return address.href;
}

wireUpTexts();
wireUpKey();
byId("share").append(copyButton("a link to this state", shareLink, "Copy link"));
themeButton(byId("theme"), () => views.matrix.refresh());
for (const link of document.querySelectorAll('a[href^="#"]')) link.addEventListener("click", goTo);
addEventListener("hashchange", openFragment);
openFragment();
