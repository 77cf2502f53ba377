// Figures as people read them.

export function bits(perSecond) {
  if (!perSecond) return "0";
  const units = ["b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"];
  let step = 0;
  while (perSecond >= 1000 && step < units.length - 1) {
    perSecond /= 1000;
    step += 1;
  }
  return `${perSecond.toFixed(perSecond < 10 && step > 0 ? 1 : 0)} ${units[step]}`;
}

export function age(seconds) {
  seconds = Math.max(0, Math.floor(seconds));
  const parts = [[86_400, "d"], [3_600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [size, unit] = parts[first];
  const whole = `${Math.floor(seconds / size)} ${unit}`;
  const next = parts[first + 1];
  const rest = next ? Math.floor((seconds % size) / next[0]) : 0;
  return rest ? `${whole} ${rest} ${next[1]}` : whole;
}

export function milliseconds(ms) {
  return ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export const number = (value) => value.toLocaleString("en");

/** An element with these attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Sets a text only if it is another: what does not change costs no layout. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}
