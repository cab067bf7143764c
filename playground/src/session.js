// Who is signed in. While the page lives, tokens are in this object's private fields only. As the page goes, the refresh token
// is laid into the tab's sessionStorage, and the page that comes next in the tab takes it out again: a reload stays signed in,
// and a tab that is opened as a copy of a living one never has its token, which would end the session when both use it.
import { post } from './graphql_http.js';

const FIELDS = 'accessToken accessTokenExpiresAt refreshToken viewer { user { email } role }';
const SIGN_IN = `mutation SignIn($input: SignInInput!) { signIn(input: $input) { ${FIELDS} } }`;
const REFRESH = `mutation RefreshSession($input: RefreshSessionInput!) { refreshSession(input: $input) { ${FIELDS} } }`;
const SIGN_OUT = 'mutation SignOut($input: SignOutInput) { signOut(input: $input) { signedOut } }';

const STORED = 'claviger:refresh-token';
/** Refresh this long before the access token's end, so that none expires on its way to the server. */
const MARGIN_MS = 60_000;
/** Where no answer came, the server may have rotated the token all the same. It takes the old one for 10 s more. */
const RETRY_MS = 4_000;
/** The shortest wait, whatever the clocks say. */
const MIN_WAIT_MS = 1_000;
const ENDED = 'Your session has ended. Sign in again.';

/** A refusal by the server, as opposed to an answer that never came. */
class Refusal extends Error {}

export class Session {
  #tokens = null;
  #refreshing = null;
  #timer = undefined;
  #listeners = new Set();
  #state = { viewer: null, notice: '', isError: false };

  subscribe = (listener) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** { viewer: null | { email, role }, notice, isError } */
  state = () => this.#state;

  async signIn(email, password) {
    try {
      const input = { email, password: { plain: password } };
      this.#accept(await ask(SIGN_IN, 'signIn', input));
    } catch (error) {
      this.#show({ viewer: null, notice: error.message, isError: true });
    }
  }

  async signOut() {
    if (!this.#tokens) return;
    const authorization = this.#header() ?? undefined;
    const input = { refreshToken: this.#tokens.refresh };
    this.#forget('Signed out.');
    try {
      await ask(SIGN_OUT, 'signOut', input, authorization);
    } catch (error) {
      this.#show({ viewer: null, notice: `Signed out here, but not on the server: ${error.message}`, isError: true });
    }
  }

  /** The Authorization header for a request made now, or null where nobody is signed in. */
  async authorization() {
    if (this.#tokens && Date.now() > this.#tokens.renewAt) await this.#refresh();
    return this.#header();
  }

  /** After the server refused `used`: the header of a renewed session, or null where it has ended. */
  async renewAfterRefusal(used) {
    // Another request may have renewed it meanwhile.
    if (this.#header()?.authorization === used.authorization) await this.#refresh();
    return this.#header();
  }

  /** The page goes: the refresh token waits in `storage` for the next one. */
  leave(storage) {
    if (!this.#tokens) return;
    clearTimeout(this.#timer);
    storage.setItem(STORED, this.#tokens.refresh);
    this.#tokens = null;
  }

  /** The page comes, or comes back: it goes on with the refresh token that waits in `storage`. */
  async resume(storage) {
    const refresh = storage.getItem(STORED);
    storage.removeItem(STORED);
    if (refresh) {
      this.#tokens = { access: null, refresh, renewAt: 0 };
      await this.#refresh();
    } else if (this.#state.viewer) {
      // The page was kept while another took the token.
      this.#forget(ENDED, true);
    }
  }

  #header() {
    return this.#tokens?.access ? { authorization: `Bearer ${this.#tokens.access}` } : null;
  }

  // One at a time: a refresh token serves once, and using it twice would end the session.
  #refresh() {
    this.#refreshing ??= this.#exchange().finally(() => {
      this.#refreshing = null;
    });
    return this.#refreshing;
  }

  async #exchange() {
    const held = this.#tokens;
    try {
      const answer = await ask(REFRESH, 'refreshSession', { refreshToken: held.refresh });
      if (this.#tokens === held) this.#accept(answer);
    } catch (error) {
      if (this.#tokens !== held) return;
      if (error instanceof Refusal) {
        this.#forget(ENDED, true);
      } else {
        // The tokens may still be good: keep them and try again.
        this.#show({ ...this.#state, notice: error.message, isError: true });
        this.#schedule(RETRY_MS);
      }
    }
  }

  #accept({ payload, date }) {
    // Counted from the server's clock, which this machine's may be far from.
    const lifetime = Date.parse(payload.accessTokenExpiresAt) - date;
    const wait = Math.max(lifetime - MARGIN_MS, lifetime / 2, MIN_WAIT_MS);
    this.#tokens = { access: payload.accessToken, refresh: payload.refreshToken, renewAt: Date.now() + wait };
    this.#schedule(wait);
    const viewer = { email: payload.viewer.user.email, role: payload.viewer.role };
    this.#show({ viewer, notice: '', isError: false });
  }

  #schedule(wait) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#tokens && this.#refresh(), wait);
  }

  #forget(notice, isError = false) {
    clearTimeout(this.#timer);
    this.#tokens = null;
    this.#show({ viewer: null, notice, isError });
  }

  #show(state) {
    this.#state = state;
    this.#listeners.forEach((listener) => listener());
  }
}

/** Runs an identity mutation. Throws a Refusal where the server answered with errors that a repeat won't cure. */
async function ask(query, field, input, headers) {
  const { date, body } = await post({ query, variables: { input } }, headers);
  const payload = body.data?.[field];
  if (payload) return { payload, date };
  const errors = body.errors ?? [];
  const message = errors.map((error) => error.message).join(' ') || 'The server gave no answer.';
  const passing = ['RATE_LIMITED', 'TIMEOUT', 'SERVICE_UNAVAILABLE', 'INTERNAL_SERVER_ERROR'];
  const cure = errors.length === 0 || errors.some((error) => passing.includes(error.extensions?.code));
  throw cure ? new Error(message) : new Refusal(message);
}
