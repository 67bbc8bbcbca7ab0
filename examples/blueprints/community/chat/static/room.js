// The window of a room. One WebSocket brings what happens there: messages, and who comes and goes.
const { me, talk } = document.currentScript.dataset; // url_for() has made the address
const [state, worker, log, here, earlier, say, text, send, error] =
  ["state", "worker", "log", "here", "earlier", "say", "text", "send", "error"].map((id) => document.getElementById(id));
const draft = `draft of ${me}: ${talk}`; // the key in sessionStorage, which outlives a reload and a login in this tab
let present = new Map(); // the name of each user who is here, and when the user came
let past = new Map(); // the name of each user who was here, and when the user left
let conversation = null, position, socket, failures = 0;

const take = {
  state(event) { // we know nothing, or were away for too long
    log.replaceChildren();
    event.messages.forEach(showMessage);
    present = new Map(Object.entries(event.here));
    past = new Map(Object.entries(event.earlier));
  },
  ready({ process }) { // we have everything, and the rest comes live
    failures = 0;
    show("connected", socket);
    worker.textContent = `process ${process}`;
  },
  message: showMessage,
  came({ name, since }) {
    present.set(name, since);
    showPeople();
  },
  left({ name, since, at }) {
    if (present.get(name) === since) present.delete(name); // otherwise the user has come back meanwhile
    past.set(name, at);
    showPeople();
  },
  error: ({ text }) => showError(text),
};

function connect() {
  show("connecting");
  socket = new WebSocket(position ? `${talk}?since=${encodeURIComponent(position)}` : talk);
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    take[event.type](event);
    position = event.position ?? position; // of the last event that we have
  };
  socket.onclose = ({ code }) => {
    if (code === 4401) return location.reload(); // logged out in another window: the page redirects to the login
    const seconds = Math.min(30, 2 ** failures++) * (0.5 + Math.random() / 2); // random, so that not all come back at once
    retryAt(Date.now() + seconds * 1000);
  };
}

function retryAt(then) {
  const milliseconds = then - Date.now(), seconds = Math.ceil(milliseconds / 1000);
  if (seconds <= 0) return retry();
  show("disconnected", null, `, next try in ${seconds} s`);
  setTimeout(retryAt, milliseconds - (seconds - 1) * 1000, then); // when the number changes
}

async function retry() {
  // A script cannot learn why a handshake was refused, but the page redirects a user who is not logged in.
  const page = await fetch(location.href, { method: "HEAD", redirect: "manual" }).catch(() => null);
  if (page?.type === "opaqueredirect") location.reload();
  else connect();
}

function show(what, connected = null, countdown = "") {
  const seconds = element("span", countdown);
  seconds.ariaHidden = "true"; // otherwise a screen reader reads out every second
  state.replaceChildren(what, seconds);
  if (connected === conversation) return;
  conversation = connected;
  send.disabled = !connected;
  if (!connected) worker.textContent = "";
  state.className = connected ? "open" : "";
  showPeople();
}

function showMessage({ id, author, text, sent_at }) {
  if (document.getElementById(`message-${id}`)) return; // it was published after the state had it
  const wasAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const item = element("li", "", avatar(author), element("b", author), time(sent_at), element("p", text));
  item.id = `message-${id}`;
  item.className = author === me ? "mine" : "";
  log.append(item);
  if (wasAtEnd || author === me) log.scrollTop = log.scrollHeight;
}

function showPeople() {
  const now = conversation ? [...present.keys()].sort() : []; // without a connection, who is here is unknown
  here.replaceChildren(...now.map((name) => element("li", "", avatar(name), element("span", name))));
  const gone = [...past].filter(([name]) => !present.has(name)).sort(([, one], [, other]) => other - one);
  earlier.replaceChildren(
    ...gone.slice(0, 20).map(([name, at]) => element("li", "", avatar(name), element("span", name), time(at))),
  );
}

function showError(what) {
  error.textContent = what;
  error.hidden = !what;
}

function time(seconds) {
  const date = new Date(seconds * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  const made = element("time", date.toLocaleString([], isToday ? { timeStyle: "short" } : { dateStyle: "medium" }));
  made.dateTime = date.toISOString();
  made.title = date.toLocaleString();
  return made;
}

function avatar(name) {
  const circle = element("i", [...name][0]);
  circle.ariaHidden = "true";
  circle.style.setProperty("--hue", [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7));
  return circle;
}

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.textContent = text; // never as HTML: other people write names and messages
  made.append(...children);
  return made;
}

say.onsubmit = (event) => {
  event.preventDefault();
  if (!conversation) return;
  showError("");
  if (text.value.trim()) conversation.send(JSON.stringify({ text: text.value }));
  text.value = "";
  sessionStorage.removeItem(draft);
  text.focus();
};

text.value = sessionStorage.getItem(draft) ?? "";
text.oninput = () => sessionStorage.setItem(draft, text.value);

text.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // with Shift, Enter makes a new line
  event.preventDefault();
  say.requestSubmit();
};

// For the back button, browsers keep a left page with an open WebSocket. When the page is shown again, onclose runs and
// opens a new connection.
addEventListener("pagehide", () => socket.close());
connect();
