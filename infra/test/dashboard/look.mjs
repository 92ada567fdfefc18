// Opens a page in headless Chromium, waits until an expression of it is true, and prints what another one gives as JSON.
// look.mjs URL UNTIL THEN: one line `opened` as soon as the page is loaded, one line of JSON at the end.
// CHROMIUM names the program.
import { chromium } from "playwright-core";

const [url, until, then] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
  ],
});
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.error("page:", error.message));
  page.on("console", (message) => console.error("console:", message.text()));
  await page.goto(url);
  console.log("opened");
  try {
    await page.waitForFunction(until, undefined, { timeout: 45000, polling: 50 });
  } catch (error) {
    console.error(error.message, await page.evaluate(then), await page.innerText("body"));
    throw error;
  }
  console.log(JSON.stringify(await page.evaluate(then)));
} finally {
  await browser.close();
}
