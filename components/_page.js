"use strict";

// Everything that comes from the model is set as text, never as markup.
(() => {
  const WAIT = 60; // milliseconds after the last change
  const byId = (id) => document.getElementById(id);
  const ENOUGH = 3; // items picked, until there is no need to suggest any
  const picked = []; // items, oldest first
  let often = []; // items that many watched
  let user = "", about = null, asked = null, timer = 0, hues = new Map();

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const named = (film) => (film.year ? `${bare(film)} (${film.year})` : film.title);
  const bare = (film) => {
    const year = ` (${film.year})`;
    return film.year && film.title.endsWith(year) ? film.title.slice(0, -year.length) : film.title;
  };
  const filled = (into, film) => {
    into.append(bare(film));
    if (film.year) into.append(" ", element("span", "year", film.year));
    return into;
  };
  const counted = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
  const tell = (text) => { byId("status").textContent = text; };
  const fail = (text) => {
    byId("error").textContent = text;
    byId("error").hidden = !text;
  };

  const fetched = async (path, options) => {
    let answer, found;
    try {
      answer = await fetch(path, options);
      found = await answer.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is `shortlist serve` still running?");
    }
    if (!answer.ok) throw new Error(found.error || `The server answers ${answer.status}.`);
    return found;
  };
  const guarded = (work) => async (...given) => {
    try {
      return await work(...given);
    } catch (error) {
      if (error.name !== "AbortError") fail(error.message);
    }
  };

  // A text field with a list of what it finds: arrows, Enter, Escape, or the pointer.
  const combine = (input, list, find, show, choose) => {
    let options = [], at = -1, asking = null, wait = 0;
    const mark = (place) => {
      at = place;
      [...list.children].forEach((option, n) => option.setAttribute("aria-selected", String(n === at)));
      if (at < 0 || !options.length) input.removeAttribute("aria-activedescendant");
      else {
        input.setAttribute("aria-activedescendant", list.children[at].id);
        list.children[at].scrollIntoView({ block: "nearest" });
      }
    };
    const close = () => {
      clearTimeout(wait);
      if (asking) asking.abort();
      list.hidden = true;
      input.setAttribute("aria-expanded", "false");
      mark(-1);
    };
    const take = (place) => {
      const option = options[place];
      if (option === undefined) return;
      input.value = "";
      close();
      choose(option);
    };
    const open = guarded(async () => {
      if (asking) asking.abort();
      asking = new AbortController();
      options = await find(input.value.trim(), asking.signal);
      list.replaceChildren(...options.map((option, n) => {
        const made = show(option);
        made.id = `${list.id}-${n}`;
        made.setAttribute("role", "option");
        made.setAttribute("aria-selected", "false");
        made.addEventListener("pointerdown", (event) => event.preventDefault());
        made.addEventListener("click", () => take(n));
        return made;
      }));
      if (!options.length) {
        const none = element("li", "", "Nothing found");
        none.setAttribute("role", "option");
        none.setAttribute("aria-disabled", "true");
        none.setAttribute("aria-selected", "false");
        list.append(none);
      }
      tell(options.length ? `${options.length} found` : "Nothing found");
      if (document.activeElement !== input) return;
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      mark(options.length && input.value ? 0 : -1);
    });
    input.addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(open, WAIT);
    });
    input.addEventListener("click", () => { if (list.hidden) open(); });
    input.addEventListener("blur", close);
    input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        if (list.hidden) open();
        else if (options.length) {
          const step = event.key === "ArrowDown" ? 1 : -1;
          mark(at < 0 && step < 0 ? options.length - 1 : (at + step + options.length) % options.length);
        }
      } else if (event.key === "Enter") {
        event.preventDefault();
        if (!list.hidden && at >= 0) take(at);
      } else if (event.key === "Escape" && !list.hidden) {
        event.preventDefault();
        close();
      } else if (event.key === "Backspace" && !input.value && input.id === "search" && picked.length) {
        drop(picked.length - 1);
      }
    });
  };

  const shown = (film) => {
    const made = element("li"), text = filled(element("span", "film"), film);
    if (film.genres.length) text.append(element("small", "", film.genres.join(" · ")));
    made.append(text);
    return made;
  };
  const pick = (film) => {
    if (!picked.some((other) => other.id === film.id)) picked.push(film);
    tell(`${named(film)} added`);
    changed();
  };
  const drop = (place) => {
    const [film] = picked.splice(place, 1);
    tell(`${named(film)} removed`);
    byId("search").focus();
    changed();
  };
  const chips = (films, count) => {
    const mine = who() === "me";
    byId("watched").hidden = !films.length;
    const theirs = `User ${user} watched ${counted(count, "item")}, the last first`;
    byId("watched-heading").textContent = mine ? "Watched" : theirs;
    byId("chips").replaceChildren(...films.map((film, place) => {
      const chip = element("li"), text = filled(element("span"), film);
      chip.append(text);
      if (mine) {
        const button = element("button");
        button.type = "button";
        button.setAttribute("aria-label", `Remove ${named(film)}`);
        button.addEventListener("click", () => drop(place));
        chip.append(button);
      }
      return chip;
    }));
    if (!mine && count > films.length) byId("chips").append(element("li", "more", `and ${count - films.length} more`));
  };

  const suggest = () => {
    const left = often.filter((film) => !picked.some((other) => other.id === film.id));
    byId("suggested").hidden = who() !== "me" || picked.length >= ENOUGH || !left.length;
    byId("suggestions").replaceChildren(...left.map((film) => {
      const line = element("li"), button = filled(element("button"), film);
      button.type = "button";
      button.addEventListener("click", () => {
        pick(film);
        byId("search").focus();
      });
      line.append(button);
      return line;
    }));
  };

  const who = () => document.querySelector("input[name=who]:checked").value;
  const question = () => {
    const context = {};
    for (const { name, value } of document.querySelectorAll("#contexts select")) if (value) context[name] = value;
    const time = byId("time").valueAsNumber;
    return {
      history: who() === "me" ? picked.map((film) => film.id) : [],
      user: who() === "user" ? user : "",
      context,
      time: Number.isFinite(time) && time >= 0 ? Math.floor(time / 1000) : -1,
      k: byId("k").valueAsNumber,
      diversity: byId("diversity").valueAsNumber,
    };
  };
  const changed = () => {
    if (who() === "me") chips(picked, picked.length);
    suggest();
    byId("k-value").textContent = byId("k").value;
    const diversity = byId("diversity").valueAsNumber;
    byId("diversity-value").textContent = diversity ? diversity.toFixed(2) : "none";
    clearTimeout(timer);
    timer = setTimeout(ask, WAIT);
  };
  const ask = guarded(async () => {
    if (asked) asked.abort();
    const own = asked = new AbortController();
    byId("results").classList.add("waiting");
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, signal: own.signal };
      const found = await fetched("page/recommend", { ...options, body: JSON.stringify(question()) });
      fail("");
      answer(found);
    } finally {
      if (asked === own) byId("results").classList.remove("waiting");
    }
  });

  const tag = (source) => {
    const made = element("span", "tag", source.replaceAll("_", " "));
    made.style.setProperty("--hue", hues.get(source) || "var(--muted)");
    return made;
  };
  const amount = (item, known) => {
    if (!known) return [item.score.toLocaleString("en"), item.score === 1 ? "watch" : "watches"];
    if (item.expected !== null && item.expected >= 0) {
      const minutes = item.expected / 60;
      const text = minutes >= 1 ? `${minutes.toFixed(minutes < 10 ? 1 : 0)} min` : `${Math.round(item.expected)} s`;
      return [text, "expected", true];
    }
    if (item.score < 0) return ["–", "not ranked"];
    return [item.score.toPrecision(3), "odds", true];
  };
  const ranked = (item, place, most, known) => {
    const made = element("li"), middle = element("div"), because = element("div", "because"), title = filled(element("button", "title"), item.film);
    title.type = "button";
    title.setAttribute("aria-expanded", "false");
    title.addEventListener("click", () => alike(item.film, title, made));
    middle.append(title);
    if (item.film.genres.length) middle.append(element("p", "genres", item.film.genres.join(" · ")));
    if (item.reason) {
      const why = element("p", "why", "most like ");
      why.append(filled(element("b"), item.reason));
      because.append(why);
    }
    if (known) {
      const tags = element("p", "tags");
      tags.append(...item.sources.map(tag));
      because.append(tags);
    }
    middle.append(because);
    const [text, unit, silent] = amount(item, known), score = element("div", "score", text);
    score.append(element("small", silent ? "unseen" : "", ` ${unit}`));
    const value = item.expected ?? item.score;
    if (value > 0 && most > 0) {
      const meter = element("meter");
      meter.max = most;
      meter.value = value;
      meter.setAttribute("aria-hidden", "true");
      score.append(meter);
    }
    made.append(element("span", "place", place + 1), middle, score);
    return made;
  };
  const alike = guarded(async (film, title, item) => {
    const before = item.querySelector(".alike");
    if (before) {
      before.remove();
      title.setAttribute("aria-expanded", "false");
      return;
    }
    const found = await fetched(`page/similar?item=${encodeURIComponent(film.id)}`);
    if (item.querySelector(".alike")) return;
    const box = element("div", "alike"), list = element("ul");
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Similar to ${named(film)}`);
    box.append(element("h3", "", found.length ? "Similar, with the cosine of their vectors" : "Nothing is similar."));
    list.append(...found.map((other) => {
      const line = element("li"), add = element("button", "plain", "Add");
      line.append(filled(element("span"), other.film), element("span", "number", other.score.toFixed(2)));
      const there = who() === "me" && picked.some((film) => film.id === other.film.id);
      line.append(there ? element("span", "there", "watched") : add);
      add.type = "button";
      add.setAttribute("aria-label", `Add ${named(other.film)} to what you have watched`);
      add.addEventListener("click", () => {
        document.querySelector("input[value=me]").checked = true;
        turned();
        pick(other.film);
        byId("search").focus();
      });
      return line;
    }));
    if (found.length) box.append(list);
    item.append(box);
    title.setAttribute("aria-expanded", "true");
    tell(`${counted(found.length, "similar item")} below ${named(film)}`);
  });
  const proposed = (part, open, ranks) => {
    const made = element("details"), head = element("summary"), list = element("ol");
    made.dataset.source = part.source;
    made.open = open;
    head.append(tag(part.source), element("span", "count", `${part.count.toLocaleString("en")} proposed`));
    list.append(...part.films.map((film, n) => {
      const line = element("li");
      line.append(element("span", "place", part.places[n]), filled(element("span"), film));
      return line;
    }));
    made.append(head, list);
    return made;
  };
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const answer = (found) => {
    const known = found.watched_count > 0;
    if (who() === "user") chips(found.watched, found.watched_count);
    const most = Math.max(0, ...found.ranked.map((item) => item.expected ?? item.score));
    byId("list").replaceChildren(...found.ranked.map((item, place) => ranked(item, place, most, known)));
    const by = found.ranked.some((item) => item.expected !== null) ? "expected watch time" : "the odds of a watch";
    byId("ranked-text").textContent = known
      ? `The second stage orders the shortlist, by ${by}.`
      : "Nothing watched yet: this is what was watched most lately.";
    const closed = new Set([...document.querySelectorAll("details:not([open])")].map((d) => d.dataset.source));
    const parts = known ? found.shortlist : [];
    byId("sources").replaceChildren(...parts.map((part) => proposed(part, !closed.has(part.source))));
    byId("shortlist-text").textContent = known
      ? `${counted(found.size, "candidate")}, numbered as fused, each below its best source.`
      : "The sources propose as soon as something was watched.";
    const url = `${location.origin}/v1/models/${encodeURIComponent(about.name)}:predict`;
    byId("curl").textContent = `curl -d ${quoted(JSON.stringify(found.request))} ${url}`;
    byId("request").hidden = false;
    tell(known ? counted(found.ranked.length, "recommendation") : "");
    document.documentElement.dataset.answers = Number(document.documentElement.dataset.answers || 0) + 1;
  };

  const turned = () => {
    byId("me").hidden = who() !== "me";
    byId("user").hidden = who() !== "user";
    if (who() === "user" && !user) chips([], 0);
    suggest();
  };
  const begin = guarded(async () => {
    about = await fetched("page/model");
    document.title = `${about.name} · Shortlist`;
    const facts = [counted(about.items, "item"), counted(about.users, "user"), `version ${about.version}`];
    byId("about").textContent = facts.join(" · ");
    hues = new Map(about.sources.map((source, n) => [source, `var(--hue${n % 6})`]));
    byId("diversity-field").hidden = !about.diversity;
    for (const { name, conditions } of about.contexts) {
      const field = element("div", "field"), label = element("label"), select = element("select");
      const words = name.replace("context_", "").replaceAll("_", " ");
      select.id = select.name = name;
      label.htmlFor = name;
      label.textContent = words.charAt(0).toUpperCase() + words.slice(1);
      select.append(new Option("any", ""), ...conditions.map((condition) => new Option(condition, condition)));
      field.append(label, select);
      byId("contexts").prepend(field);
    }
    often = await fetched("page/items");
    suggest();
    await ask();
  });
  combine(byId("search"), byId("found"),
    (words, signal) => fetched(`page/items?q=${encodeURIComponent(words.slice(0, 200))}`, { signal }), shown, pick);
  combine(byId("users"), byId("found-users"),
    (start, signal) => fetched(`page/users?q=${encodeURIComponent(start.slice(0, 200))}`, { signal }),
    (id) => element("li", "", id),
    (id) => {
      user = id;
      byId("users").value = id;
      changed();
    });
  byId("ask").addEventListener("submit", (event) => event.preventDefault());
  byId("ask").addEventListener("input", (event) => { if (!["search", "users"].includes(event.target.id)) changed(); });
  for (const radio of document.querySelectorAll("input[name=who]")) radio.addEventListener("change", turned);
  byId("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("curl").textContent);
      byId("copy").textContent = "Copied";
      tell("Copied");
    } catch {
      getSelection().selectAllChildren(byId("curl"));
      tell("Selected: press Ctrl+C");
    }
    setTimeout(() => { byId("copy").textContent = "Copy"; }, 2000);
  });
  begin();
})();
