// Encrypts a password for the server with WebCrypto, which browsers have on pages by https and on localhost, and Node too.

/** What goes in the place of `{ plain: password }`, made with what the query `passwordKey` answered. */
export async function encrypt(password, { keyId, publicKeyPem, nonce }) {
  const base64 = publicKeyPem.replaceAll(/-----[A-Z ]+-----|\s/g, '');
  const spki = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const algorithm = { name: 'RSA-OAEP', hash: 'SHA-256' };
  const key = await crypto.subtle.importKey('spki', spki, algorithm, false, ['encrypt']);
  // RSA takes 318 bytes of it: 260 for the password as JSON has it. A longer one can only be sent as it is.
  const text = new TextEncoder().encode(JSON.stringify({ password, nonce }));
  const bytes = new Uint8Array(await crypto.subtle.encrypt({ name: 'RSA-OAEP' }, key, text));
  return { encrypted: { keyId, nonce, ciphertext: btoa(String.fromCharCode(...bytes)) } };
}
