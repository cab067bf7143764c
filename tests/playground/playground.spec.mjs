// Uses the playground of a running server as a person would: signs in, then creates, lists, updates and deletes a
// Claude account and reads its audit log, each time looking at what the page shows.
//
// URL, EMAIL and PASSWORD say where and as whom (an ADMIN); CHROMIUM names the browser (default /usr/bin/chromium);
// SCREENSHOT, if given, is the path of a picture taken at the end.
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const { EMAIL, PASSWORD, SCREENSHOT, CHROMIUM = '/usr/bin/chromium' } = process.env;
assert(process.env.URL && EMAIL && PASSWORD, 'URL, EMAIL and PASSWORD must be set');
const origin = new URL(process.env.URL).origin;

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  // The browser's own calls home would be noise here; as root (a container) it starts only without its sandbox.
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
const page = await context.newPage();
page.setDefaultTimeout(20_000);

const complaints = [];
const foreign = [];
const hasHost = (url) => /^(https?|wss?):/.test(url);
page.on('console', (message) => ['error', 'warning'].includes(message.type()) && complaints.push(`${message.text()} (${message.location().url})`));
page.on('pageerror', (error) => complaints.push(String(error)));
// The context's events hold the workers' requests too.
context.on('request', (request) => hasHost(request.url()) && new URL(request.url()).origin !== origin && foreign.push(request.url()));
await page.addInitScript(() => {
  window.policyViolations = [];
  // The editor draws only the lines in view; its model has all of what is shown.
  window.answerModel = () => window.__MONACO.editor.getModels().find((model) => model.uri.path.endsWith('response.json'));
  document.addEventListener('securitypolicyviolation', ({ effectiveDirective, blockedURI }) => window.policyViolations.push(`${effectiveDirective}: ${blockedURI}`));
});

let passed = 0;
let failed = 0;
// Each step needs the one before, so after a failure the others are not tried.
async function test(name, body) {
  if (failed > 0) return;
  try {
    await body();
    passed += 1;
    console.log(`ok: ${name}`);
  } catch (error) {
    failed += 1;
    console.error(`FAILED: ${name}\n${error.stack}`);
    console.error(['console:', ...complaints, 'foreign requests:', ...foreign].join('\n'));
    if (SCREENSHOT) await page.screenshot({ path: SCREENSHOT });
  }
}

const bar = page.getByRole('banner');
const execute = page.getByRole('button', { name: /^Execute query/ });

/** Types a named operation over what the editor holds, runs it, and gives the result that the page shows. */
async function run(lines) {
  // On one line: at a line's end the editor adds indentation and brackets of its own.
  const operation = lines.replaceAll(/\s+/g, ' ');
  await page.locator('.graphiql-query-editor .view-lines').click();
  await page.keyboard.press('Control+A');
  await page.keyboard.insertText(operation);
  // GraphiQL reads the operation's name a moment after the typing, and shows it on the tab.
  const [, operationName] = operation.match(/^\w+ (\w+)/);
  await page.getByRole('tab', { name: operationName }).waitFor();
  const answered = page.waitForResponse((response) => response.request().postDataJSON()?.query?.includes(operation));
  await execute.click();
  await answered;
  const shown = await page.waitForFunction(() => {
    return window.answerModel()?.getValue();
  });
  const text = await shown.jsonValue();
  // It draws them a moment after its model has them.
  await page.locator('.result-window .view-lines', { hasText: /"data"|"errors"/ }).waitFor();
  const { data, errors } = JSON.parse(text);
  assert.equal(errors, undefined, text);
  return data;
}

const name = `Playground test ${Date.now()}`;
// Unlike any other key: the server refuses one that it has already.
const upstreamKey = `sk-ant-api03-playground-test-${crypto.randomUUID()}`;
let id;

try {
  await test('the page opens with its title and the sample operation', async () => {
    await page.goto(process.env.URL);
    assert.equal(await page.title(), 'Claviger');
    await page.locator('.graphiql-query-editor').getByText('claudeAccounts').first().waitFor();
  });

  await test('nobody is answered as nobody', async () => {
    assert.equal((await run('query Nobody { viewer { role } }')).viewer, null);
  });

  await test('a wrong password is answered in words', async () => {
    await bar.getByLabel('Email').fill(EMAIL);
    await bar.getByLabel('Password').fill(`${PASSWORD} not`);
    await bar.getByRole('button', { name: 'Sign in' }).click();
    const alert = bar.getByRole('alert');
    await alert.waitFor();
    assert.match(await alert.innerText(), /\w+ \w+/);
  });

  await test('the form signs in and the bar says who with which role', async () => {
    await bar.getByLabel('Password').fill(PASSWORD);
    await bar.getByRole('button', { name: 'Sign in' }).click();
    await bar.getByRole('button', { name: 'Sign out' }).waitFor();
    assert.match(await bar.innerText(), new RegExp(`${EMAIL.replaceAll(/[.+]/g, '\\$&')} \\(ADMIN\\)`));
  });

  await test('the answer that nobody had does not stay beside the sign-in', async () => {
    await page.waitForFunction(() => answerModel().getValue() === '');
  });

  await test('createClaudeAccount shows the new account', async () => {
    const data = await run(`mutation Create {
      createClaudeAccount(input: { accountName: "${name}", apiKey: "${upstreamKey}", tier: PRO }) {
        claudeAccount { id accountName apiKeyHint version }
      }
    }`);
    const account = data.createClaudeAccount.claudeAccount;
    id = account.id;
    assert.match(id, /^acct_/);
    assert.equal(account.accountName, name);
    assert.equal(account.apiKeyHint, upstreamKey.slice(-4));
  });

  await test('the list has it', async () => {
    const data = await run('query List { claudeAccounts(first: 100) { nodes { id accountName } totalCount } }');
    assert(data.claudeAccounts.totalCount >= 1);
    assert(data.claudeAccounts.nodes.some((node) => node.id === id && node.accountName === name));
  });

  await test('updateClaudeAccount shows the new name and a higher version', async () => {
    const data = await run(`mutation Update {
      updateClaudeAccount(input: { id: "${id}", accountName: "${name}, renamed" }) {
        claudeAccount { id accountName version }
      }
    }`);
    const account = data.updateClaudeAccount.claudeAccount;
    assert.equal(account.accountName, `${name}, renamed`);
    assert(account.version > 1);
  });

  await test('deleteClaudeAccount shows the deleted id and the list has it no more', async () => {
    const data = await run(`mutation Delete { deleteClaudeAccount(input: { id: "${id}" }) { deletedId } }`);
    assert.equal(data.deleteClaudeAccount.deletedId, id);
    const list = await run('query ListAgain { claudeAccounts(first: 100) { nodes { id } } }');
    assert(!list.claudeAccounts.nodes.some((node) => node.id === id));
  });

  await test('auditLogs shows the three changes, newest first, without the key', async () => {
    const data = await run(`query History {
      auditLogs(first: 20, filter: { resourceId: "${id}" }) { nodes { action operation outcome changes } }
    }`);
    const entries = data.auditLogs.nodes;
    assert.deepEqual(
      entries.map(({ action, operation, outcome }) => [action, operation, outcome]),
      [
        ['DELETE', 'deleteClaudeAccount', 'SUCCESS'],
        ['UPDATE', 'updateClaudeAccount', 'SUCCESS'],
        ['CREATE', 'createClaudeAccount', 'SUCCESS'],
      ],
    );
    assert(!JSON.stringify(entries).includes(upstreamKey));
  });

  await test('a subscription shows what happens meanwhile', async () => {
    await page.locator('.graphiql-query-editor .view-lines').click();
    await page.keyboard.press('Control+A');
    await page.keyboard.insertText('subscription Watch { auditLogAdded { operation outcome } }');
    await page.getByRole('tab', { name: 'Watch' }).waitFor();
    await execute.click();
    // Again and again: the subscription begins a moment after the click.
    await page.waitForFunction(async () => {
      const query = 'mutation { signOut(input: { refreshToken: "none" }) { signedOut } }';
      const headers = { 'content-type': 'application/json' };
      await fetch('/graphql', { method: 'POST', headers, body: JSON.stringify({ query }) });
      const result = window.__MONACO.editor.getModels().find((model) => model.uri.path.endsWith('response.json'));
      return result?.getValue().includes('"operation": "signOut"');
    });
    await page.getByRole('button', { name: /^Stop/ }).click();
    await execute.waitFor();
  });

  await test('a typed API key goes in the place of the session\'s token', async () => {
    await page.getByRole('button', { name: 'Headers', exact: true }).click();
    await page.evaluate(() => {
      const headers = window.__MONACO.editor.getModels().find((model) => model.uri.path.endsWith('headers.json'));
      headers.setValue('{ "X-API-Key": "clv_typed" }');
    });
    const sent = page.waitForRequest((request) => request.postDataJSON()?.query?.includes('query Keyed'));
    assert.equal((await run('query Keyed { viewer { role } }')).viewer, null);
    const headers = (await sent).headers();
    assert.deepEqual([headers['x-api-key'], headers.authorization], ['clv_typed', undefined]);
    await page.evaluate(() => {
      window.__MONACO.editor.getModels().find((model) => model.uri.path.endsWith('headers.json')).setValue('');
    });
    assert.equal((await run('query Unkeyed { viewer { role } }')).viewer.role, 'ADMIN');
  });

  await test('no storage of the browser holds a token', async () => {
    const stored = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]));
    assert.doesNotMatch(stored, /Bearer|accessToken|refreshToken|refresh-token|eyJ/);
  });

  await test('a reload stays signed in, and leaves no token behind', async () => {
    await page.reload();
    await bar.getByRole('button', { name: 'Sign out' }).waitFor();
    assert.equal((await run('query Again { viewer { role } }')).viewer.role, 'ADMIN');
    await page.reload();
    await bar.getByRole('button', { name: 'Sign out' }).waitFor();
    const stored = await page.evaluate(() => JSON.stringify({ ...sessionStorage }));
    assert.doesNotMatch(stored, /refresh-token/);
    await run('query Still { viewer { role } }');
  });

  if (SCREENSHOT && failed === 0) await page.screenshot({ path: SCREENSHOT });

  await test('signing out brings the form back, and requests go out as nobody', async () => {
    await bar.getByRole('button', { name: 'Sign out' }).click();
    await bar.getByRole('button', { name: 'Sign in' }).waitFor();
    await page.waitForFunction(() => answerModel().getValue() === '');
    await page.reload();
    await bar.getByRole('button', { name: 'Sign in' }).waitFor();
    assert.equal((await run('query Who { viewer { role } }')).viewer, null);
  });

  await test('the console is clean, the policy was kept and no request left the host', async () => {
    assert.deepEqual(complaints, []);
    assert.deepEqual(await page.evaluate(() => window.policyViolations), []);
    assert.deepEqual(foreign, []);
  });
} finally {
  await browser.close();
}

console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
