// Talks to the reactor: everything once, then what changes.

const TOKEN = "lb-token";

/** Asks the reactor, with the token if one was given. Throws `Unauthorized` if it wants one. */
export async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { ...options.headers, authorization: `Bearer ${token}` } : options.headers;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) throw new Unauthorized();
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer;
}

export class Unauthorized extends Error {}

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/** A reactor that sends nothing for so long, not even a comment, is gone. */
const SILENCE = 15_000;

/** Follows the cluster for good. `changed` gets each change, `state` a word on the connection. */
export async function follow(changed, state, unauthorized) {
  for (let pause = 250; ; pause = Math.min(pause * 2, 5_000)) {
    const abort = new AbortController();
    let watchdog;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => abort.abort(), SILENCE);
    };
    try {
      alive();
      const answer = await ask("cluster/events", { signal: abort.signal });
      state("live");
      let whole = true;
      for await (const data of events(answer.body, alive)) {
        pause = 250;
        changed(JSON.parse(data), whole);
        whole = false;
      }
      state("the reactor closed the connection; trying again");
    } catch (error) {
      if (error instanceof Unauthorized) await unauthorized();
      else state("the reactor is not reached; trying again");
    } finally {
      clearTimeout(watchdog);
      abort.abort();
    }
    await new Promise((done) => setTimeout(done, pause));
  }
}

/** The data of Server-Sent Events (WHATWG HTML, section 9.2). */
async function* events(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}
