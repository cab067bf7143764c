// Signs in from Node with an encrypted password, and prints who that is. CLAVIGER_URL, CLAVIGER_EMAIL and CLAVIGER_PASSWORD say where
// and as whom.
import { constants, publicEncrypt } from 'node:crypto';

const { CLAVIGER_URL: url = 'http://127.0.0.1:3001', CLAVIGER_EMAIL: email, CLAVIGER_PASSWORD: password } = process.env;
if (!email || !password) throw new Error('CLAVIGER_EMAIL and CLAVIGER_PASSWORD are not set');

async function ask(query, variables) {
  const response = await fetch(`${url}/graphql`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  if (errors) throw new Error(`${errors[0].extensions.code}: ${errors[0].message}`);
  return data;
}

/** What goes in the place of `{ plain: password }`, made with what the query `passwordKey` answered. */
function encrypt(text, { keyId, publicKeyPem: key, nonce }) {
  const padding = { padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' };
  const bytes = publicEncrypt({ key, ...padding }, Buffer.from(JSON.stringify({ password: text, nonce })));
  return { encrypted: { keyId, nonce, ciphertext: bytes.toString('base64') } };
}

const { passwordKey } = await ask('{ passwordKey { keyId publicKeyPem nonce } }');
const input = { email, password: encrypt(password, passwordKey) };
const { signIn } = await ask(
  'mutation SignIn($input: SignInInput!) { signIn(input: $input) { accessToken viewer { user { email } role } } }',
  { input },
);
console.log(`${signIn.viewer.user.email}\t${signIn.viewer.role}`);
