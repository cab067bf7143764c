// Signs in from a page. The page's origin has to be in FRONTEND_URL of the server, whose address stands in the page.
import { encrypt } from './encrypt.mjs';

const form = document.querySelector('form');
const output = document.querySelector('output');

async function ask(query, variables) {
  const response = await fetch(`${form.dataset.server}/graphql`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  if (errors) throw new Error(errors[0].message);
  return data;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const { email, password } = Object.fromEntries(new FormData(form));
  try {
    // A fresh one for each attempt: it serves once, and for five minutes.
    const { passwordKey } = await ask('{ passwordKey { keyId publicKeyPem nonce } }');
    const input = { email, password: await encrypt(password, passwordKey) };
    const { signIn } = await ask(
      'mutation SignIn($input: SignInInput!) { signIn(input: $input) { accessToken viewer { user { email } } } }',
      { input },
    );
    output.value = `Signed in as ${signIn.viewer.user.email}`;
  } catch (error) {
    output.value = error.message;
  }
});
