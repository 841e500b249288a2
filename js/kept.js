// Texts that stay with this page until its tab is closed, in no file. Each has a name, and never changes.
const KEY = "InternVLU.Kept";
const MOST = 100; // texts; the oldest go first

const texts = new Map();
try {
  for (const [name, text] of JSON.parse(sessionStorage.getItem(KEY)) ?? []) texts.set(name, text);
} catch {
  // A browser that stores nothing for a page, or something else under this key: then a reload forgets them.
}

// Empty for a name of another page or another day.
export function kept(name) {
  return texts.get(name) ?? "";
}

export function keep(text) {
  for (const [name, there] of texts) if (there === text) return name;
  const name = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
  texts.set(name, text);
  while (texts.size > MOST) texts.delete(texts.keys().next().value);
  try {
    sessionStorage.setItem(KEY, JSON.stringify([...texts]));
  } catch {
    // As above, or there is no room: the page itself still has them.
  }
  return name;
}
