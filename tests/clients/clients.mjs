// Real clients in a browser or a server of JavaScript: are they still signed in after many access tokens have expired?
//
//   node clients.mjs BASE_URL together|apart ROUNDS
//
// Each client consists of two that share a stored token and no lock. `together` both refresh at once; `apart` the second
// one has read the token before the first one refreshes, and sends it after the first one has its answer.

import { Auth, skipCSRFCheck } from "@auth/core";
import Credentials from "@auth/core/providers/credentials";
import axios from "axios";
import { createAuthRefresh } from "axios-auth-refresh";

const [base, mode, rounds] = process.argv.slice(2);
const LATER = mode === "apart" ? 300 : 0;
const EXPIRY = 2100;
const PASSWORD = "client-pass-1";

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const bearer = (token) => ({ Authorization: `Bearer ${token}` });

async function post(path, body) {
  const answer = await fetch(base + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}: ${await answer.text()}`);
  return answer.json();
}

async function account(name) {
  const account = { email: `${name}-${mode}-${Date.now()}@example.com`, password: PASSWORD };
  await post("/auth/register", account);
  return account;
}

async function check(accessToken) {
  const answer = await fetch(`${base}/users/me`, { headers: bearer(accessToken) });
  if (!answer.ok) throw new Error(`/users/me answered ${answer.status}`);
}

// Two tabs of a page that keeps its tokens in the local storage.
async function twoTabs() {
  let stored = await post("/auth/login", await account("tabs"));
  return async () => {
    const read = stored.refresh_token;
    const refresh = async (later) => {
      await sleep(later);
      stored = await post("/auth/refresh", { refresh_token: read });
    };
    await Promise.all([refresh(0), refresh(LATER)]);
    await check(stored.access_token);
  };
}

// Auth.js with the `jwt` callback of its guide to refresh token rotation. Two requests come with the same cookie; `apart`
// the first one is a server component, which cannot set the new cookie.
async function authJs() {
  const credentials = await account("authjs");
  const expiresAt = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url")).exp;
  const config = {
    secret: "of-the-shop-and-known-to-nobody-else",
    trustHost: true,
    basePath: "/api/auth",
    skipCSRFCheck,
    providers: [Credentials({ credentials: {}, authorize: () => post("/auth/login", credentials) })],
    callbacks: {
      async jwt({ token, user }) {
        if (user) {
          const { access_token, refresh_token } = user;
          return { ...token, access_token, refresh_token, expires_at: expiresAt(access_token) };
        }
        if (Date.now() < token.expires_at * 1000) return token;
        try {
          const { access_token, refresh_token } = await post("/auth/refresh", { refresh_token: token.refresh_token });
          return { ...token, access_token, refresh_token, expires_at: expiresAt(access_token) };
        } catch (error) {
          return { ...token, error: `${error}` };
        }
      },
      session: ({ session, token }) => ({ ...session, error: token.error, access_token: token.access_token }),
    },
  };
  let cookie = "";
  const send = (path, init = {}) =>
    Auth(new Request(`http://shop.example/api/auth${path}`, { ...init, headers: { cookie, ...init.headers } }), config);
  const keep = (answer) => {
    const fresh = answer.headers.getSetCookie().map((header) => header.split(";")[0]);
    cookie = fresh.filter((pair) => pair.startsWith("authjs.session-token")).join("; ") || cookie;
  };
  keep(
    await send("/callback/credentials", {
      method: "POST",
      headers: { "content-type": "application/x-www-form-urlencoded", "X-Auth-Return-Redirect": "1" },
      body: "",
    }),
  );
  return async () => {
    const both = await Promise.all([send("/session"), sleep(LATER).then(() => send("/session"))]);
    keep(both[1]);
    for (const answer of both) {
      const session = await answer.json();
      if (!session?.access_token || session.error) throw new Error(session?.error ?? "there is no session");
      await check(session.access_token);
    }
  };
}

// axios-auth-refresh in two tabs: within each it makes one refresh of many requests that fail, between them nothing does.
async function axiosAuthRefresh() {
  let stored = await post("/auth/login", await account("axios"));
  let read;
  const tabs = [0, 1].map((number) => {
    const tab = axios.create({ baseURL: base });
    tab.interceptors.request.use((request) => {
      request.headers.set(bearer(stored.access_token));
      return request;
    });
    const refresh = async () => {
      await sleep(number * LATER);
      stored = await post("/auth/refresh", { refresh_token: read });
    };
    // By default a request that was on its way when the refresh began fails.
    createAuthRefresh(tab, refresh, { deduplicateRefresh: false });
    return tab;
  });
  return async () => {
    read = stored.refresh_token;
    await Promise.all(tabs.flatMap((tab) => [1, 2, 3].map(() => tab.get("/users/me"))));
  };
}

async function live(name, start) {
  let round = 0;
  try {
    const refresh = await start();
    for (; round < rounds; round += 1) {
      await sleep(EXPIRY);
      await refresh();
    }
  } catch (error) {
    process.exitCode = 1;
    console.log(`${name}, ${mode}: signed out in round ${round + 1} of ${rounds}: ${error.message}`);
    return;
  }
  console.log(`${name}, ${mode}: signed in after ${rounds} expiries`);
}

await Promise.all([live("two tabs", twoTabs), live("Auth.js", authJs), live("axios-auth-refresh", axiosAuthRefresh)]);
