/* A field above each long table, in which a reader types what rows should hold. */
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("div.searched")) {
    const rows = [...box.querySelectorAll("tbody tr")]
    if (rows.length < 12) continue
    const field = document.createElement("input")
    field.type = "search"
    field.placeholder = `Filter ${rows.length} rows`
    field.setAttribute("aria-label", "Filter the rows of this table")
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/)
      for (const row of rows) {
        const text = row.textContent.toLowerCase()
        row.hidden = !words.every((word) => text.includes(word))
      }
    })
    box.prepend(field)
  }
})
