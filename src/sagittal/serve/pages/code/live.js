// Changes as they happen: the service says which study changed, the page asks for it again.

/**
 * Listen to changes.
 * @param {(change: {kind: string, id?: number}) => void} onChange
 * @param {(connected: boolean) => void} onState
 * @returns {() => void} stops listening
 */
export function listen(onChange, onState) {
  let source = null;
  let again = 0;
  let wait_ms = 1000;
  let stopped = false;

  const open = () => {
    if (stopped) return;
    source = new EventSource("/api/changes");
    source.addEventListener("open", () => {
      wait_ms = 1000;
      onState(true);
    });
    const take = (event) => {
      try {
        onChange({ kind: event.type, ...JSON.parse(event.data) });
      } catch {
        // a comment or a newer kind of message
      }
    };
    for (const kind of ["message", "study", "job", "event"]) source.addEventListener(kind, take);
    source.addEventListener("error", () => {
      onState(false);
      if (source.readyState === EventSource.CLOSED) {
        // The browser gave up (an error page, a restart): try again, ever more slowly.
        clearTimeout(again);
        again = setTimeout(open, wait_ms);
        wait_ms = Math.min(wait_ms * 2, 30000);
      }
    });
  };

  open();
  return () => {
    stopped = true;
    clearTimeout(again);
    source?.close();
  };
}
