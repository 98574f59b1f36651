// Makes gsplat.min.js, see NOTICE.md: the library as one plain script, for pages that are opened as a file.
import { readFileSync } from "node:fs";
import { build } from "esbuild";

const folder = "node_modules/gsplat/";

// Browsers start no worker of type "module" for such a page, and plain scripts have no `import.meta`.
const plain = (code) => code.replaceAll("import.meta.url", "location.href");
const inWorkers = (_, code) => '"' + Buffer.from(plain(Buffer.from(code, "base64").toString())).toString("base64") + '"';

// The long axis of an ellipse: the library's formula is 0 / 0 where that is exactly horizontal, and the Gaussian is not seen.
const axis = "normalize(vec2(cov2d[0][1], lambda1 - cov2d[0][0]))";
const half = "(cov2d[0][0] - cov2d[1][1]) / 2.0";
const stableAxis = `normalize(${half} < 0.0 ? vec2(cov2d[0][1], radius - ${half}) : vec2(radius + ${half} + 1e-9, cov2d[0][1]))`;

const contents = plain(readFileSync(folder + "dist/index.es.js", "utf8"))
  .replaceAll(axis, stableAxis)
  .replaceAll('type: "module"', 'type: "classic"')
  .replaceAll(/"([A-Za-z0-9+/=]{20000,})"/g, inWorkers);

await build({
  stdin: { contents },
  banner: { js: "/*! gsplat 1.2.9\n\n" + readFileSync(folder + "LICENSE", "utf8") + "*/" },
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "gsplat",
  outfile: "gsplat.min.js",
});
