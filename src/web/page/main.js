// The page of the reactor: what the cluster does, and each stream.

import "uplot/dist/uPlot.min.css";
import "./page.css";
import { follow, setToken } from "./api.js";
import { bits, number, setText } from "./format.js";
import { draw } from "./map.js";
import { StreamPage } from "./stream.js";
import { Tables } from "./tables.js";

const get = (id) => document.getElementById(id);
const cluster = { streams: new Map(), nodes: new Map(), switches: [] };
const tables = new Tables();
const page = new StreamPage();

function take(map, changes) {
  for (const [name, value] of Object.entries(changes ?? {})) {
    if (value === null) map.delete(name);
    else map.set(name, value);
  }
}

function changed(change, whole) {
  if (whole) {
    cluster.streams.clear();
    cluster.nodes.clear();
  }
  take(cluster.streams, change.streams);
  take(cluster.nodes, change.nodes);
  cluster.switches = change.switches ?? cluster.switches;
  show();
}

let waiting = false;

/** Shows what changed at the next frame, however many changes come until then. */
function show() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    totals();
    if (get("overview").hidden) {
      page.update(cluster);
    } else {
      tables.show(cluster, get("search").value.trim());
      draw(get("map"), cluster);
    }
  });
}

function totals() {
  const sum = (map, value) => [...map.values()].reduce((all, one) => all + value(one), 0);
  const all = {
    streams: number(cluster.streams.size),
    viewers: number(sum(cluster.nodes, (node) => node.viewers)),
    nodes: number(cluster.nodes.size),
    in: bits(sum(cluster.nodes, (node) => node.received_bits_per_second)),
    out: bits(sum(cluster.nodes, (node) => node.sent_bits_per_second)),
  };
  for (const [name, text] of Object.entries(all)) setText(document.querySelector(`[data-total=${name}]`), text);
}

function route() {
  const match = location.hash.match(/^#\/stream\/(.+)$/);
  const name = match ? decodeURIComponent(match[1]) : null;
  get("overview").hidden = name !== null;
  get("stream").hidden = name === null;
  document.title = name === null ? "lb" : `${name} · lb`;
  page.open(name, cluster);
  show();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  get("theme").textContent = name === "dark" ? "Light" : "Dark";
}

/** The dialog for the reactor's token; resolves when one was given. */
function askForToken() {
  const dialog = get("token-dialog");
  if (!dialog.open) dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      setToken(get("token").value);
      get("token").value = "";
      done();
    }, { once: true });
  });
}

const dark = matchMedia("(prefers-color-scheme: dark)");
theme(localStorage.getItem("lb-theme") ?? (dark.matches ? "dark" : "light"));
get("theme").addEventListener("click", () => {
  const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("lb-theme", other);
  theme(other);
});
get("search").addEventListener("input", () => {
  if (location.hash.startsWith("#/stream/")) location.hash = "#/";
  show();
});
addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing) {
    event.preventDefault();
    get("search").focus();
  } else if (event.key === "Escape" && !get("stream").hidden) {
    location.hash = "#/";
  }
});
addEventListener("hashchange", route);
// Ages go on without a change.
setInterval(show, 1_000);
route();
follow(changed, (state) => {
  setText(get("connection"), state);
  get("connection").dataset.state = state === "live" ? "well" : "away";
}, askForToken);
