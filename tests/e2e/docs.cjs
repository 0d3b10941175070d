// What a person does on the docs page: registers with the example as it stands, signs in, hands the access token to
// "Authorize", lists the users.
//
//   node docs.cjs URL EMAIL PASSWORD FOLDER
//
// Prints as JSON what the page showed, and everything that a browser's console or network view would mark red. Pictures of
// each step go to FOLDER. Judged by docs.rs.
const { chromium } = require("playwright-core");

const [url, email, password, folder] = process.argv.slice(2);
const origin = new URL(url).origin;
const problems = [];

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.AUTH_E2E_BROWSER, args: ["--disable-dev-shm-usage"] });
  const page = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
  page.setDefaultTimeout(30_000);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`script: ${error}`));
  page.on("requestfailed", (request) => problems.push(`failed: ${request.url()} ${request.failure()?.errorText}`));
  page.on("response", (response) => {
    if (response.status() >= 400) problems.push(`${response.status()}: ${response.url()}`);
  });
  page.on("request", (request) => {
    const to = request.url();
    if (!to.startsWith(`${origin}/`) && !to.startsWith("data:")) problems.push(`elsewhere: ${to}`);
  });
  const picture = (name) => page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });

  // Opens an operation, fills in what is to be sent, and gives what the page shows of the answer.
  const tryOut = async (id, body) => {
    const operation = page.locator(`[id="operations-${id}"]`);
    await operation.locator(".opblock-summary-control").click();
    await operation.getByRole("button", { name: "Try it out" }).click();
    if (body) await operation.locator("textarea").fill(JSON.stringify(body));
    await operation.getByRole("button", { name: "Execute" }).click();
    const answer = operation.locator(".live-responses-table");
    const status = await answer.locator(".response .response-col_status").innerText();
    const text = await answer.locator(".highlight-code code").first().innerText();
    return { status: parseInt(status, 10), body: JSON.parse(text) };
  };

  await page.goto(url);
  await page.locator(".opblock").first().waitFor();
  const title = await page.title();
  const heading = await page.locator(".info .title").innerText();
  const tags = await page.locator(".opblock-tag").evaluateAll((tags) => tags.map((tag) => tag.dataset.tag));
  await picture("page");

  const registered = await tryOut("auth-auth_register");
  const login = await tryOut("auth-auth_login", { email, password });
  await picture("login");

  await page.locator(".scheme-container .btn.authorize").click();
  const dialog = page.locator(".modal-ux");
  await dialog.locator("input").fill(login.body.access_token);
  await picture("authorize");
  await dialog.getByRole("button", { name: "Apply credentials" }).click();
  await dialog.getByRole("button", { name: "Close" }).last().click();

  const users = await tryOut("users-users_list");
  await picture("users");
  await browser.close();
  console.log(JSON.stringify({ title, heading, tags, registered, login: login.status, users, problems }));
}

main().catch((error) => {
  console.error(error, problems);
  process.exit(1);
});
