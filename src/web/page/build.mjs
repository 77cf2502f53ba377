// Bundles the page into dist/: one script, one style sheet, one document, and nothing that is fetched from elsewhere at run time.
import { build } from "esbuild";
import { copyFile, mkdir, rm } from "node:fs/promises";

await rm("dist", { recursive: true, force: true });
await mkdir("dist");
await build({
  entryPoints: { page: "main.js" },
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome110", "firefox110", "safari16"],
  outdir: "dist",
  legalComments: "eof",
});
await copyFile("index.html", "dist/index.html");
