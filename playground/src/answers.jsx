// Clears the answers when somebody else is signed in: what one user was shown does not stay beside another's name.
import { useGraphiQL, useGraphiQLActions } from '@graphiql/react';
import { useEffect, useRef, useSyncExternalStore } from 'react';

export function Answers({ session }) {
  const { viewer, isError } = useSyncExternalStore(session.subscribe, session.state);
  const { responseEditor, tabs } = useGraphiQL(({ responseEditor, tabs }) => ({ responseEditor, tabs }));
  const { stop, updateActiveTabValues } = useGraphiQLActions();
  const shownTo = useRef(viewer?.email);
  useEffect(() => {
    // Where the session has ended by itself, the answer stays that tells of it.
    if (shownTo.current === viewer?.email || (!viewer && isError)) return;
    shownTo.current = viewer?.email;
    // An answer that is on its way was asked for by the one before.
    stop();
    // GraphiQL has an action for the tab in front only.
    tabs.forEach((tab) => {
      tab.response = null;
    });
    updateActiveTabValues({ response: null });
    responseEditor?.setValue('');
  });
  return null;
}
