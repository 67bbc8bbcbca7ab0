// The window of a room: one WebSocket for messages, one for the list of people. url_for() makes both addresses.
const { me, talk, presence } = document.currentScript.dataset;
const [state, worker, log, here, earlier, say, text, send, error] =
  ["state", "worker", "log", "here", "earlier", "say", "text", "send", "error"].map((id) => document.getElementById(id));
const draft = `draft of ${me}: ${talk}`; // the key in sessionStorage, which outlives a reload and a login in this tab
let conversation, version = 0;

keepConnected(presence, showPeople, (what, socket) => {
  if (!socket) here.replaceChildren(); // who is there is unknown
});
keepConnected(
  talk,
  (message) => {
    if (message.type === "error") return showError(message.text);
    if (message.worker) worker.textContent = `process ${message.worker}`; // the first message has it
    message.messages.forEach(showMessage);
  },
  (what, socket, countdown = "") => {
    conversation = socket;
    if (!socket) worker.textContent = "";
    send.disabled = !socket;
    const seconds = element("span", countdown);
    seconds.ariaHidden = "true"; // otherwise a screen reader reads out every second
    state.replaceChildren(what, seconds);
    state.className = socket ? "open" : "";
  },
);

function keepConnected(url, take, show) {
  let failures = 0, socket;

  function connect() {
    show("connecting");
    socket = new WebSocket(url);
    socket.onopen = () => { failures = 0; show("connected", socket); };
    socket.onmessage = ({ data }) => take(JSON.parse(data));
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

  // For the back button, browsers keep a left page with open WebSockets. When the page is shown again, onclose runs and
  // opens a new connection.
  addEventListener("pagehide", () => socket.close());
  connect();
}

function showMessage({ id, author, text, sent_at }) {
  if (document.getElementById(`message-${id}`)) return; // after a reconnect, the last messages come again
  const wasAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const item = element("li", "", avatar(author), element("b", author), time(sent_at), element("p", text));
  item.id = `message-${id}`;
  item.className = author === me ? "mine" : "";
  item.dataset.number = id;
  log.insertBefore(item, [...log.children].find((other) => other.dataset.number > id) ?? null);
  if (wasAtEnd || author === me) log.scrollTop = log.scrollHeight;
}

function showPeople(people) {
  if (people.version < version) return; // two workers have sent lists, and this one is older
  version = people.version;
  here.replaceChildren(...people.here.map((name) => element("li", "", avatar(name), element("span", name))));
  earlier.replaceChildren(
    ...people.earlier.map(({ name, at }) => element("li", "", avatar(name), element("span", name), time(at))),
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
