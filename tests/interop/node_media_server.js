// node-media-server with one relay at most: node node_media_server.js PORT FOLDER [pull|push URL PATH]
const NodeMediaServer = require("node-media-server");
const { eventEmitter } = require("node-media-server/src/core/context.js");

const [port, folder, mode, url, streamPath] = process.argv.slice(2);
const server = new NodeMediaServer({ bind: "127.0.0.1", rtmp: { port: Number(port) }, store: { path: folder } });
server.run();

const relay = () => server.relayServer.addTask({ mode, url, streamPath });
if (mode === "pull") relay();
// There is nothing to push before somebody publishes.
if (mode === "push") eventEmitter.on("postPublish", (session) => session.streamPath === streamPath && relay());
