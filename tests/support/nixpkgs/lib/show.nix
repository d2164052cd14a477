# How errors of the module system show options, files and values. The wording is that of nixpkgs.
{ lib }:
let
  inherit (builtins) concatStringsSep map;
  inherit (lib) mapAttrsToList;

  identifier = text: if builtins.match "[a-zA-Z_][a-zA-Z0-9_'-]*" text != null then text else builtins.toJSON text;

  # Text of a value on several lines, as nix repl shows it.
  pretty =
    depth: indent: value:
    let
      inner = "${indent}  ";
      block = begin: items: end: "${begin}\n${lib.concatMapStrings (item: "${inner}${item}\n") items}${indent}${end}";
    in
    if depth == 0 then
      "<unevaluated>"
    else if lib.isDerivation value then
      "<derivation ${value.name or "???"}>"
    else if builtins.isAttrs value && value ? __functor then
      "<function>"
    else if value == { } then
      "{ }"
    else if value == [ ] then
      "[ ]"
    else if builtins.isAttrs value then
      block "{" (mapAttrsToList (name: each: "${identifier name} = ${pretty (depth - 1) inner each};") value) "}"
    else if builtins.isList value then
      block "[" (map (pretty (depth - 1) inner) value) "]"
    else if builtins.isString value then
      builtins.toJSON value
    else if builtins.isPath value || builtins.isFloat value then
      toString value
    else if builtins.isFunction value then
      "<function>"
    else
      builtins.toJSON value;

  # Of the last column of the table alone: the row above is given.
  nextRow =
    row: n: letter: letters:
    builtins.foldl' (
      done: m:
      let
        change = builtins.elemAt row (m - 1) + (if builtins.elemAt letters (m - 1) == letter then 0 else 1);
        smallest = builtins.foldl' (a: b: if a < b then a else b) change [
          (lib.last done + 1)
          (builtins.elemAt row m + 1)
        ];
      in
      done ++ [ smallest ]
    ) [ n ] (lib.range 1 (builtins.length letters));
  letters = text: builtins.genList (n: builtins.substring n 1 text) (builtins.stringLength text);
in
rec {
  showOption = path: concatStringsSep "." (map (part: if builtins.match "[*]|<.*>" part != null then part else identifier part) path);

  showFiles = files: concatStringsSep " and " (map (file: "`${file}'") files);

  showDefs = lib.concatMapStrings (
    def:
    let
      text = builtins.tryEval (pretty 10 "" def.value);
      lines = lib.splitString "\n" text.value;
      cut = lib.take 5 lines ++ lib.optional (builtins.length lines > 5) "...";
      shown =
        if !text.success then
          ""
        else if builtins.length lines == 1 then
          ": ${text.value}"
        else
          ":\n    ${concatStringsSep "\n    " cut}";
    in
    "\n- In `${def.file}'${shown}"
  );

  # The number of letters to add, drop or change.
  levenshtein =
    a: b:
    let
      rows = builtins.foldl' (state: letter: {
        n = state.n + 1;
        row = nextRow state.row (state.n + 1) letter (letters b);
      }) { n = 0; row = lib.range 0 (builtins.stringLength b); } (letters a);
    in
    lib.last rows.row;

  # "Did you mean": the three names that are nearest to the last part of `path`.
  suggestion =
    path: names:
    let
      distance = levenshtein (lib.last path);
      near = lib.take 3 (builtins.sort (a: b: distance a < distance b) names);
      shown = map (name: "`${showOption (lib.init path ++ [ name ])}'") near;
    in
    if near == [ ] then
      ""
    else if builtins.length near == 1 then
      "\n\nDid you mean ${builtins.head shown}?"
    else
      "\n\nDid you mean ${concatStringsSep ", " (lib.init shown)} or ${lib.last shown}?";
}
