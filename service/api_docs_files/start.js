// Swagger UI on this service's document. `validatorUrl`: else a stranger's host would be asked.

const tries = document.documentElement.dataset.try === "true";

// Of another type the body starts anew: by itself Swagger UI writes the form's state into the JSON box.
const startBodyAnew = () => ({
  statePlugins: {
    oas3: {
      wrapActions: {
        setRequestContentType: (choose, { oas3Actions }) => (choice) => {
          const chosen = choose(choice);
          oas3Actions.setRequestBodyValue({ value: undefined, pathMethod: choice.pathMethod });
          return chosen;
        },
      },
    },
  },
});

SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  plugins: [startBodyAnew],
  supportedSubmitMethods: tries ? ["get", "post"] : [],
});
