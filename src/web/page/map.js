// The map: ingest nodes on the left, playback nodes on the right, and the pulls between them; as wide as there are streams.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 44;
const WIDTH = 900;
const BOX = 250;

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Which ingest node a playback node pulls how many streams from. */
function pulls(streams) {
  const edges = new Map();
  for (const stream of streams.values()) {
    for (const pull of stream.pulls ?? []) {
      if (!stream.node) continue;
      const key = `${stream.node}\n${pull.node}`;
      edges.set(key, (edges.get(key) ?? 0) + 1);
    }
  }
  return edges;
}

function box(name, node, x, y, detail) {
  const label = name.length > 32 ? `${name.slice(0, 31)}…` : name;
  const title = shape("title", {}, `${name}: ${node.state}, ${detail}`);
  return shape("g", { class: `node ${node.state}`, "data-node": name },
    title,
    shape("rect", { x, y, width: BOX, height: ROW - 10, rx: 6 }),
    shape("text", { x: x + 10, y: y + 15, class: "name" }, label),
    shape("text", { x: x + 10, y: y + 28, class: "detail" }, detail));
}

let drawn = "";

/** Draws the map into an element, if it changed. */
export function draw(into, { streams, nodes }) {
  const named = [...nodes].sort(([a], [b]) => a.localeCompare(b));
  const ingest = named.filter(([, node]) => node.roles.includes("ingest"));
  const playback = named.filter(([, node]) => node.roles.includes("playback"));
  const edges = pulls(streams);
  const look = JSON.stringify([
    ingest.map(([name, node]) => [name, node.state, node.published]),
    playback.map(([name, node]) => [name, node.state, node.viewers, node.pulls]),
    [...edges],
  ]);
  if (look === drawn) return;
  drawn = look;
  const height = Math.max(ingest.length, playback.length, 1) * ROW + 10;
  const at = (list) => new Map(list.map(([name], row) => [name, row * ROW + 5]));
  const [left, right] = [at(ingest), at(playback)];
  const svg = shape("svg", { viewBox: `-1 0 ${WIDTH + 2} ${height}`, role: "img", "aria-label": spoken(ingest, playback, edges) });
  for (const [key, count] of edges) {
    const [from, to] = key.split("\n");
    const [y1, y2] = [left.get(from), right.get(to)].map((y) => y + (ROW - 10) / 2);
    if (Number.isNaN(y1) || Number.isNaN(y2)) continue;
    const [x1, x2] = [BOX, WIDTH - BOX];
    const width = 1.5 + Math.min(8, Math.log2(count + 1));
    const path = `M${x1},${y1} C${x1 + 150},${y1} ${x2 - 150},${y2} ${x2},${y2}`;
    svg.append(shape("path", { d: path, class: "pull", "stroke-width": width },
      shape("title", {}, `${to} pulls ${count} from ${from}`)));
  }
  for (const [name, node] of ingest) svg.append(box(name, node, 0, left.get(name), `${node.published} published`));
  for (const [name, node] of playback) {
    svg.append(box(name, node, WIDTH - BOX, right.get(name), `${node.viewers} viewers, ${node.pulls} pulled`));
  }
  into.replaceChildren(svg);
}

function spoken(ingest, playback, edges) {
  const pulled = [...edges].map(([key, count]) => {
    const [from, to] = key.split("\n");
    return `${to} pulls ${count} from ${from}`;
  });
  const shown = pulled.slice(0, 20).join("; ");
  return `${ingest.length} ingest nodes and ${playback.length} playback nodes. ${shown}`;
}
