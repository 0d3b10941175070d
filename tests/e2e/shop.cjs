// What a customer does with the link of a mail: opens the shop's page, types a password if it asks for one, presses its button.
//
//   node shop.cjs GATEWAY LINK look TIMES       opens the page so often, and does nothing there
//   node shop.cjs GATEWAY LINK press [PASSWORD]
//
// GATEWAY (host:port) answers for the host of the link. Prints as JSON what the page says then, and everything that a
// browser's console would mark red. Judged by shop.rs.
const { chromium } = require("playwright-core");

const [gateway, link, act, value] = process.argv.slice(2);
const problems = [];

async function main() {
  const resolve = `--host-resolver-rules=MAP ${new URL(link).hostname} ${gateway}`;
  const browser = await chromium.launch({
    executablePath: process.env.AUTH_E2E_BROWSER,
    args: ["--disable-dev-shm-usage", resolve],
  });
  const page = await browser.newPage();
  page.setDefaultTimeout(30_000);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`script: ${error}`));
  await page.goto(link);
  if (act === "look") {
    for (let times = 1; times < Number(value); times++) await page.reload();
  } else {
    if (value) await page.getByLabel("password").fill(value);
    await page.getByRole("button").click();
    await page.waitForFunction(() => document.querySelector("output").value);
  }
  const said = await page.locator("output").innerText();
  await browser.close();
  console.log(JSON.stringify({ said, problems }));
}

main().catch((error) => {
  console.error(error, problems);
  process.exit(1);
});
