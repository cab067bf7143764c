// Uses the page of examples/encrypted-password in a browser: signs in at a running server, which must not see the password as it is.
//
// URL, EMAIL and PASSWORD say where and as whom; ORIGIN is where the page is served, which the server has in FRONTEND_URL; CHROMIUM names the
// browser (default /usr/bin/chromium).
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { chromium } from 'playwright-core';

const { URL: server, ORIGIN, EMAIL, PASSWORD, CHROMIUM = '/usr/bin/chromium' } = process.env;
assert(server && ORIGIN && EMAIL && PASSWORD, 'URL, ORIGIN, EMAIL and PASSWORD must be set');
const folder = new URL('../../examples/encrypted-password/', import.meta.url);

// As any server for files would do.
const files = createServer(async (request, response) => {
  const name = request.url.slice(1) || 'index.html';
  if (!['index.html', 'browser.mjs', 'encrypt.mjs'].includes(name)) return response.writeHead(404).end();
  response.setHeader('content-type', name.endsWith('.html') ? 'text/html' : 'text/javascript');
  return response.end(await readFile(new URL(name, folder)));
});
await new Promise((resolve) => files.listen(new URL(ORIGIN).port, '127.0.0.1', resolve));

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(20_000);
  const sent = [];
  page.on('request', (request) => request.method() === 'POST' && sent.push(request.postData()));
  await page.goto(`${ORIGIN}/`);
  await page.locator('form').evaluate((form, url) => (form.dataset.server = url), server);

  const attempt = async (password) => {
    await page.locator('output').evaluate((output) => (output.value = ''));
    await page.getByLabel('Email').fill(EMAIL);
    await page.getByLabel('Password').fill(password);
    await page.getByRole('button', { name: 'Sign in' }).click();
    await page.waitForFunction(() => document.querySelector('output').value !== '');
    return page.locator('output').evaluate((output) => output.value);
  };
  assert.match(await attempt('none that anybody has'), /wrong/);
  assert.equal(await attempt(PASSWORD), `Signed in as ${EMAIL}`);

  assert.equal(sent.length, 4, sent.join('\n'));
  assert(sent[3].includes('"ciphertext"') && !sent.some((body) => body.includes(PASSWORD)));
} finally {
  await browser.close();
  files.close();
}
console.log('1 passed, 0 failed');
