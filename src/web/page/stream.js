// The page of one stream: its picture, its figures, its last hour, and what happened to it.

import mpegts from "mpegts.js";
import uPlot from "uplot";
import { ask } from "./api.js";
import { age, bits, element, milliseconds, number, setText } from "./format.js";

const get = (id) => document.getElementById(id);

/** The time between two looks at the timeline and the last hour. */
const REFRESH = 2_000;

mpegts.LoggingControl.enableAll = false;

export class StreamPage {
  constructor() {
    this.name = null;
    this.player = null;
    this.charts = [];
    get("replay").addEventListener("click", () => this.play());
    get("from").addEventListener("change", () => this.play());
  }

  /** Shows a stream, or none. */
  open(name, cluster) {
    if (this.name === name) return;
    this.close();
    this.name = name;
    if (name === null) return;
    get("stream-title").textContent = name;
    get("facts").replaceChildren();
    get("timeline").replaceChildren();
    get("history-text").textContent = "";
    this.update(cluster);
    this.play();
    this.look();
    this.timer = setInterval(() => this.look(), REFRESH);
  }

  close() {
    clearInterval(this.timer);
    this.stop();
    this.charts.forEach((chart) => chart.destroy());
    this.charts = [];
    get("charts").replaceChildren();
    get("from").replaceChildren();
  }

  /** Takes what changed. */
  update({ streams, nodes }) {
    if (this.name === null) return;
    const stream = streams.get(this.name);
    this.published = stream !== undefined;
    this.offer(nodes, stream);
    if (!this.player) this.play();
    const source = stream?.source;
    const facts = stream ? [
      ["Published on", stream.node ?? stream.origin],
      ["Session", stream.session ?? "–"],
      ["Epoch", String(stream.epoch)],
      ["Since", age(Date.now() / 1000 - stream.since)],
      ["Viewers", number(stream.viewers)],
      ["Bitrate", source ? bits(source.bits_per_second) : "–"],
      ["Frames a second", source ? source.frames_per_second.toFixed(1) : "–"],
      ["Keyframe every", source?.keyframe_ms ? milliseconds(source.keyframe_ms) : "–"],
      ["Picture", source?.size ? `${source.size[0]}×${source.size[1]}` : "–"],
      ["Codecs", [source?.video, source?.audio].filter(Boolean).join(", ") || "–"],
      ["Watched on", (stream.pulls ?? []).map((pull) => `${pull.node} (${pull.viewers})`).join(", ") || "nobody watches"],
    ] : [["State", "not published"]];
    const list = get("facts");
    if (list.children.length !== facts.length) {
      list.replaceChildren(...facts.map(([name]) => element("div", {}, element("dt", {}, name), element("dd"))));
    }
    facts.forEach(([name, value], row) => {
      setText(list.children[row].firstElementChild, name);
      setText(list.children[row].lastElementChild, value);
    });
  }

  /** The nodes that a browser can play from: first where the stream is pulled already, then the least busy. */
  offer(nodes, stream) {
    const pulled = new Set((stream?.pulls ?? []).map((pull) => pull.node));
    const offered = [...nodes]
      .filter(([, node]) => node.http && node.state === "well")
      .sort(([a, x], [b, y]) => pulled.has(b) - pulled.has(a) || x.viewers - y.viewers || (a < b ? -1 : 1));
    this.places = new Map(offered.map(([name, node]) => [name, node.http]));
    const select = get("from");
    const names = [...select.options].map((option) => option.value);
    if (names.length === offered.length && offered.every(([name]) => names.includes(name))) return;
    const chosen = select.value;
    select.replaceChildren(...offered.map(([name]) => element("option", { value: name }, name)));
    if (this.places.has(chosen)) select.value = chosen;
  }

  address() {
    const place = this.places?.get(get("from").value);
    if (!place) return null;
    const scheme = place.tls ? "https" : "http";
    const name = this.name.split("/").map(encodeURIComponent).join("/");
    const token = get("play-token").value;
    const query = token ? `?token=${encodeURIComponent(token)}` : "";
    return `${scheme}://${place.host ?? location.hostname}:${place.port}/${encodeURIComponent(place.app)}/${name}.flv${query}`;
  }

  play() {
    this.stop();
    const address = this.address();
    setText(get("address"), address?.replace(/token=.*/, "token=…") ?? "");
    if (!address) {
      this.say(this.published === false ? "The stream is not published." : "No playback node serves browsers.");
      return;
    }
    if (!mpegts.isSupported()) {
      this.say("This browser has no Media Source Extensions, which the player needs.");
      return;
    }
    const player = mpegts.createPlayer(
      { type: "flv", isLive: true, url: address },
      { isLive: true, liveBufferLatencyChasing: true, liveBufferLatencyMaxLatency: 2, liveBufferLatencyMinRemain: 0.3, autoCleanupSourceBuffer: true, enableStashBuffer: false },
    );
    this.player = player;
    const again = (why) => {
      if (this.player !== player) return;
      this.say(`${why}; trying again`);
      this.retry = setTimeout(() => this.play(), 1_000);
    };
    player.on(mpegts.Events.ERROR, (kind, detail, info) => again(`The picture stopped (${info?.msg ?? detail ?? kind})`));
    player.on(mpegts.Events.LOADING_COMPLETE, () => again("The stream ended"));
    this.say("connecting");
    player.attachMediaElement(get("video"));
    player.load();
    get("video").onplaying = () => this.say("playing");
    // A browser that does not start by itself has its own button for it.
    player.play()?.catch?.(() => {});
  }

  stop() {
    clearTimeout(this.retry);
    this.player?.destroy();
    this.player = null;
  }

  say(text) {
    setText(get("player"), text);
  }

  async look() {
    const name = this.name;
    try {
      const path = name.split("/").map(encodeURIComponent).join("/");
      const { events, samples } = await (await ask(`timelines/${path}`)).json();
      if (this.name === name) this.show(events, samples);
    } catch {
      // The connection's state says so; the next look may do better.
    }
  }

  show(events, samples) {
    const line = (event) => {
      const at = new Date(Date.now() - event.ago_ms);
      const where = event.node ?? "reactor";
      const session = event.session ? [" ", element("span", { class: "session" }, event.session)] : [];
      return element("li", {}, element("time", { datetime: at.toISOString() }, at.toLocaleTimeString()), ` ${where}: ${event.what}`, ...session);
    };
    get("timeline").replaceChildren(...(events.length ? events.map(line) : [element("li", {}, "Nothing is known.")]));
    const most = (value) => samples.reduce((peak, sample) => Math.max(peak, value(sample)), 0);
    setText(get("history-text"), samples.length
      ? `At most ${bits(most((sample) => sample.bits_per_second))} and ${number(most((sample) => sample.viewers))} viewers; one sample each 20 seconds.`
      : "No samples yet: there is one each 20 seconds.");
    this.draw(samples);
  }

  draw(samples) {
    const now = Date.now() / 1000;
    const times = samples.map((sample) => now - sample.ago_s);
    const wanted = [
      ["Bitrate", (sample) => sample.bits_per_second, bits],
      ["Frames a second", (sample) => sample.frames_per_second, (value) => String(value)],
      ["Viewers", (sample) => sample.viewers, number],
    ];
    const style = getComputedStyle(document.documentElement);
    const [ink, line, accent] = ["--muted", "--line", "--accent"].map((name) => style.getPropertyValue(name).trim());
    const width = Math.max(240, Math.floor((get("charts").clientWidth - 24) / 3));
    wanted.forEach(([title, value, shown], index) => {
      const data = [times, samples.map(value)];
      if (this.charts[index]) {
        this.charts[index].setData(data);
        return;
      }
      const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
      this.charts[index] = new uPlot({
        title, width, height: 160, legend: { show: false }, cursor: { show: false },
        scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
        axes: [axis, { ...axis, size: 70, values: (_, values) => values.map(shown) }],
        series: [{}, { label: title, stroke: accent, width: 2, points: { show: samples.length < 30 } }],
      }, data, get("charts"));
      this.charts[index].root.setAttribute("aria-hidden", "true");
    });
  }
}
