"""The live page `/` and the browser's client `/client.js`: static files of the package."""
