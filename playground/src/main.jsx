// The page: a bar to sign in with, and GraphiQL beneath it sending its requests as whoever is signed in.
import './workers.js';
import { GraphiQL } from 'graphiql';
import { createRoot } from 'react-dom/client';
import { Answers } from './answers.jsx';
import { createFetcher } from './fetcher.js';
import { SAMPLE } from './sample.js';
import { Session } from './session.js';
import { SessionBar } from './session_bar.jsx';

const session = new Session();
const fetcher = createFetcher(session);
session.resume(window.sessionStorage);
window.addEventListener('pagehide', () => session.leave(window.sessionStorage));
window.addEventListener('pageshow', (event) => event.persisted && session.resume(window.sessionStorage));

// Operations may hold secrets (an upstream key, a password), so what GraphiQL keeps of them ends with the browser tab.
createRoot(document.getElementById('page')).render(
  <>
    <SessionBar session={session} />
    <main>
      <GraphiQL fetcher={fetcher} defaultQuery={SAMPLE} storage={window.sessionStorage} shouldPersistHeaders={false}>
        <GraphiQL.Logo>
          <a className="schema-link" href="/schema.graphql">schema.graphql</a>
        </GraphiQL.Logo>
        <Answers session={session} />
      </GraphiQL>
    </main>
  </>,
);
