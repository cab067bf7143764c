// Bundles the playground into dist/, which the server embeds (src/http/playground.rs lists the same files).
// `--check` builds beside it and fails where dist/ is not what the sources give.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { build } from 'esbuild';

const check = process.argv.includes('--check');
const dist = 'dist';
const target = check ? mkdtempSync(join(tmpdir(), 'playground-')) : dist;

// GraphiQL names one web font for its editors, without a fallback; the playground uses the system's.
const FONT = `ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace`;
const systemFont = {
  name: 'system font',
  setup({ onLoad }) {
    onLoad({ filter: /@graphiql\/react\/dist\/utility\/create-editor\.js$/ }, ({ path }) => {
      const parts = readFileSync(path, 'utf8').split('"\\"Fira Code\\""');
      if (parts.length !== 2) throw new Error('GraphiQL no longer names its font here');
      return { contents: parts.join(JSON.stringify(FONT)) };
    });
  },
};

const common = {
  bundle: true,
  minify: true,
  write: false,
  metafile: true,
  outdir: 'out',
  entryNames: '[name]',
  legalComments: 'none',
  target: 'es2022',
  define: { 'process.env.NODE_ENV': '"production"' },
  alias: {
    // The same plugin by its old name: one copy instead of two.
    'prettier/parser-graphql': 'prettier/plugins/graphql',
    // Two thirds of a megabyte to indent the variables; see src/prettier_jsonc.js.
    'prettier/parser-babel': './src/prettier_jsonc.js',
    'prettier/plugins/estree': './src/prettier_jsonc.js',
  },
};

const results = await Promise.all([
  // The packages' style sheets come through src/style.css.
  build({ ...common, entryPoints: { app: 'src/main.jsx' }, format: 'esm', jsx: 'automatic', loader: { '.css': 'empty' }, plugins: [systemFont] }),
  build({ ...common, entryPoints: { app: 'src/style.css' }, loader: { '.ttf': 'dataurl' } }),
  build({
    ...common,
    entryPoints: {
      'editor.worker': 'monaco-editor/esm/vs/editor/editor.worker.js',
      'json.worker': 'monaco-editor/esm/vs/language/json/json.worker.js',
      'graphql.worker': 'monaco-graphql/esm/graphql.worker.js',
    },
    format: 'iife',
  }),
]);

const files = results
  .flatMap((result) => result.outputFiles)
  .map(({ path, contents }) => ({ name: path.split('/').pop(), contents: Buffer.from(contents) }))
  .concat({ name: 'THIRD-PARTY-LICENSES.txt', contents: Buffer.from(licences(results)) })
  .sort((a, b) => a.name.localeCompare(b.name));

// One address for all of them, new whenever one changes, so that browsers may keep them for ever.
const hash = createHash('sha256');
files.forEach(({ name, contents }) => hash.update(name).update(contents));
const version = hash.digest('hex').slice(0, 16);

if (!check) rmSync(dist, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
files.forEach(({ name, contents }) => writeFileSync(join(target, `${name}.gz`), gzipSync(contents, { level: 9 })));
writeFileSync(join(target, 'build.txt'), version);
writeFileSync(join(target, 'index.html'), readFileSync('index.html', 'utf8').replaceAll('{{BUILD}}', version));

if (check) {
  const stale = readdirSync(target).filter((name) => !same(join(target, name), join(dist, name)));
  rmSync(target, { recursive: true });
  if (stale.length > 0) {
    console.error(`playground/dist is not what its sources give: ${stale.join(', ')}. Run npm run build.`);
    process.exit(1);
  }
}
console.log(`build ${version}`);

// Compares what is inside: another zlib may pack the same bytes differently.
function same(a, b) {
  if (!existsSync(b)) return false;
  const read = (path) => (path.endsWith('.gz') ? gunzipSync(readFileSync(path)) : readFileSync(path));
  return read(a).equals(read(b));
}

/** The licence texts of every package that has a part in the bundle. */
function licences(builds) {
  const inputs = builds.flatMap((result) => Object.keys(result.metafile.inputs));
  const folders = new Set(inputs.flatMap((path) => path.match(/^.*node_modules\/(?:@[^/]+\/)?[^/]+/) ?? []));
  const parts = [...folders].sort().map((folder) => {
    const { name, version: release, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    const texts = readdirSync(folder)
      .filter((file) => /^(licen[cs]e|notice|thirdpartynotices)/i.test(file))
      .map((file) => readFileSync(join(folder, file), 'utf8').trim());
    return [`${name} ${release} (${license})`, ...texts].join('\n\n');
  });
  return `The playground contains these packages.\n\n${parts.join(`\n\n${'-'.repeat(80)}\n\n`)}\n`;
}
