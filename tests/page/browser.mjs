// A real browser for tests: reads one command a line from standard input, as JSON, and answers each with one line.
//
//   {"open": URL}        loads a page
//   {"wait": EXPRESSION} waits until it is true in the page, and gives its value
//   {"eval": EXPRESSION} gives its value
//   {"type": TEXT, "into": SELECTOR} and {"press": KEY}
//   {"scheme": "dark" | "light"}     what the user prefers
//   {"audit": true}      what axe-core finds that is serious
//   {"shot": FILE}       takes a picture
//
// The browser ends with the input.
import { createInterface } from "node:readline";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [, , modules, chromium] = process.argv;
const require = createRequire(`${modules}/`);
const puppeteer = require("puppeteer-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

const browser = await puppeteer.launch({
  executablePath: chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required", "--disable-background-networking"],
});
const page = await browser.newPage();
await page.setViewport({ width: 1280, height: 900 });
// The audit's own script is no part of the page, and would be refused by its policy.
const hosts = new Set();
const errors = [];
page.on("request", (request) => {
  const url = new URL(request.url());
  if (url.protocol.startsWith("http")) hosts.add(url.hostname);
});
page.on("pageerror", (error) => errors.push(String(error)));
page.on("console", (message) => {
  if (message.type() === "error" && message.text().includes("Content Security Policy")) errors.push(message.text());
});

async function run(command) {
  if (command.open) return void (await page.goto(command.open, { waitUntil: "load" }));
  if (command.wait) {
    const handle = await page.waitForFunction(command.wait, { timeout: command.timeout ?? 20_000, polling: 50 });
    return handle.jsonValue();
  }
  if (command.eval) return page.evaluate(command.eval);
  if (command.into) return void (await page.type(command.into, command.type));
  if (command.press) return void (await page.keyboard.press(command.press));
  if (command.scheme) return void (await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: command.scheme }]));
  if (command.shot) return void (await page.screenshot({ path: command.shot }));
  if (command.hosts) return [...hosts];
  if (command.errors) return errors;
  if (command.audit) {
    const client = await page.createCDPSession();
    await client.send("Runtime.evaluate", { expression: axe });
    const found = await page.evaluate("axe.run().then((result) => result.violations)");
    return found
      .filter((violation) => ["serious", "critical"].includes(violation.impact))
      .map((violation) => `${violation.id}: ${violation.nodes.map((node) => node.html).join(" | ").slice(0, 300)}`);
  }
  throw new Error("no such command");
}

console.log(JSON.stringify({ ready: true }));
for await (const line of createInterface({ input: process.stdin })) {
  try {
    const value = await run(JSON.parse(line));
    console.log(JSON.stringify({ value: value ?? null }));
  } catch (error) {
    const text = await page.evaluate("document.body.innerText.slice(0, 2000)").catch(() => "");
    console.log(JSON.stringify({ error: `${error}\n${text}\n${errors.join("\n")}` }));
  }
}
await browser.close();
