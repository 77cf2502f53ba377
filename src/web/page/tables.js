// The tables of streams and nodes. A row is kept for as long as what it shows is there, and only cells that changed are touched.

import { age, bits, element, milliseconds, number, setText } from "./format.js";

/** A table whose rows are kept by name. */
class Rows {
  constructor(table, columns, numbers) {
    this.body = table.tBodies[0];
    this.columns = columns;
    this.numbers = numbers;
    this.rows = new Map();
  }

  /** Shows these entries in this order. */
  show(entries) {
    const names = new Set();
    let place = this.body.firstElementChild;
    for (const [name, cells, link, state] of entries) {
      names.add(name);
      const row = this.rows.get(name) ?? this.make(name, link);
      row.dataset.state = state;
      cells.forEach((text, column) => setText(column ? row.cells[column] : row.cells[0].firstElementChild, text));
      if (row === place) place = row.nextElementSibling;
      else this.body.insertBefore(row, place);
    }
    for (const [name, row] of this.rows) {
      if (names.has(name)) continue;
      row.remove();
      this.rows.delete(name);
    }
  }

  make(name, link) {
    const head = element("th", { scope: "row" }, link ? element("a", { href: link }) : element("span"));
    const cells = Array.from({ length: this.columns - 1 }, (_, column) =>
      element("td", this.numbers.includes(column + 1) ? { class: "number" } : {}));
    const row = element("tr", { "data-name": name }, head, ...cells);
    this.rows.set(name, row);
    return row;
  }
}

/** The most rows that are shown: of more, the search finds the others. */
const MOST = 2_000;

export class Tables {
  constructor() {
    this.streams = new Rows(document.getElementById("streams"), 10, [2, 3, 4, 5, 8, 9]);
    this.nodes = new Rows(document.getElementById("nodes"), 9, [3, 4, 5, 7, 8]);
    this.switches = document.getElementById("switches");
    this.noStreams = document.getElementById("no-streams");
    this.switched = null;
  }

  show({ streams, nodes, switches }, search) {
    const wanted = search.toLowerCase();
    const has = (...texts) => texts.some((text) => text?.toLowerCase().includes(wanted));
    const now = Date.now() / 1000;
    const rows = [];
    for (const [name, stream] of [...streams].sort(([a], [b]) => (a < b ? -1 : 1))) {
      if (rows.length >= MOST) break;
      if (!has(name, stream.node, ...(stream.pulls ?? []).map((pull) => pull.node))) continue;
      rows.push([name, streamCells(name, stream, now), `#/stream/${encodeURIComponent(name)}`, stream.source?.live === false ? "silent" : "well"]);
    }
    this.streams.show(rows);
    setText(this.noStreams, streams.size ? (rows.length ? "" : "No stream is called so.") : "Nothing is published.");
    const of = [...nodes].sort(([a], [b]) => (a < b ? -1 : 1)).filter(([name]) => has(name) || wanted === "");
    this.nodes.show(of.map(([name, node]) => [name, nodeCells(name, node), null, node.state]));
    if (this.switched === switches) return;
    this.switched = switches;
    const line = (event) => element("li", {},
      element("time", { datetime: new Date(event.at * 1000).toISOString() }, new Date(event.at * 1000).toLocaleTimeString()),
      " ", element("a", { href: `#/stream/${encodeURIComponent(event.stream_name)}` }, event.stream_name),
      ` ${event.what}${event.node ? ` on ${event.node}` : ""}`);
    this.switches.replaceChildren(...(switches.length ? switches.map(line) : [element("li", {}, "None yet.")]));
  }
}

function streamCells(name, stream, now) {
  const source = stream.source;
  return [
    name,
    stream.node ?? stream.origin,
    number(stream.viewers),
    source ? bits(source.bits_per_second) : "",
    source ? source.frames_per_second.toFixed(1) : "",
    source?.keyframe_ms ? `every ${milliseconds(source.keyframe_ms)}` : "",
    source?.size ? `${source.size[0]}×${source.size[1]}` : "",
    [source?.video, source?.audio].filter(Boolean).join(", "),
    String(stream.epoch),
    age(now - stream.since),
  ];
}

function nodeCells(name, node) {
  const used = node.viewers + node.published + node.pulls;
  const share = node.capacity ? `${((100 * used) / node.capacity).toFixed(1)} %` : "";
  return [
    name, node.roles.join(", "), node.state, number(node.published), number(node.pulls), number(node.viewers), share,
    bits(node.received_bits_per_second), bits(node.sent_bits_per_second),
  ];
}
