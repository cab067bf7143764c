// The strip above GraphiQL: a form to sign in, or who is signed in.
import { useState, useSyncExternalStore } from 'react';

export function SessionBar({ session }) {
  const { viewer, notice, isError } = useSyncExternalStore(session.subscribe, session.state);
  return (
    <header className="session-bar">
      <strong className="product">Claviger</strong>
      {/* Both regions stay in the page, so that a screen reader announces what appears in them. */}
      <span className="notice" role={isError ? 'alert' : 'status'}>
        {notice}
      </span>
      <span className="viewer" role="status">
        {viewer && `Signed in as ${viewer.email} (${viewer.role})`}
      </span>
      {viewer ? (
        <button type="button" onClick={() => session.signOut()}>
          Sign out
        </button>
      ) : (
        <SignInForm session={session} />
      )}
    </header>
  );
}

function SignInForm({ session }) {
  const [busy, setBusy] = useState(false);
  async function submit(event) {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    setBusy(true);
    await session.signIn(form.get('email'), form.get('password'));
    setBusy(false);
  }
  return (
    <form aria-label="Sign in" onSubmit={submit}>
      <label>
        Email <input name="email" type="email" autoComplete="username" required />
      </label>
      <label>
        Password <input name="password" type="password" autoComplete="current-password" required />
      </label>
      <button type="submit" disabled={busy}>
        Sign in
      </button>
    </form>
  );
}
