# The functions of the library of nixpkgs that nix/container.nix and the configurations of tests use.
let
  inherit (builtins)
    attrNames
    attrValues
    concatStringsSep
    elem
    filter
    genList
    head
    isAttrs
    isFunction
    isString
    length
    listToAttrs
    map
    mapAttrs
    pathExists
    readFile
    replaceStrings
    stringLength
    substring
    tail
    ;

  fix =
    make: extra:
    let
      self = make self // extra self (make self);
    in
    self // { extend = more: fix make (final: prev: let first = extra final prev; in first // more final (prev // first)); };

  make =
    lib:
    builtins
    // import ./modules.nix { inherit lib; }
    // import ./show.nix { inherit lib; }
    // {
      types = import ./types.nix { inherit lib; };
      attrsets = lib;
      lists = lib;
      modules = lib;
      options = lib;
      strings = lib;

      # Functions, warnings
      id = value: value;
      const = value: _: value;
      flip = f: a: b: f b a;
      pipe = builtins.foldl' (value: f: f value);
      functionArgs = f: if isAttrs f then builtins.functionArgs (f.__functor f) else builtins.functionArgs f;
      isFunction = f: isFunction f || (f ? __functor && isFunction (f.__functor f));
      warn = message: value: builtins.trace "evaluation warning: ${message}" value;
      warnIf = condition: message: if condition then lib.warn message else lib.id;
      throwIf = condition: message: if condition then throw message else lib.id;
      throwIfNot = condition: lib.throwIf (!condition);
      importJSON = path: builtins.fromJSON (readFile path);

      # Lists
      singleton = value: [ value ];
      optional = condition: value: if condition then [ value ] else [ ];
      optionals = condition: list: if condition then list else [ ];
      toList = value: if builtins.isList value then value else [ value ];
      last = list: builtins.elemAt list (length list - 1);
      init = list: lib.take (length list - 1) list;
      take = count: list: genList (builtins.elemAt list) (if count < length list then count else length list);
      drop = count: list: genList (n: builtins.elemAt list (n + count)) (length list - count);
      imap1 = f: list: genList (n: f (n + 1) (builtins.elemAt list n)) (length list);
      range = from: to: genList (n: from + n) (to - from + 1);
      remove = value: filter (each: each != value);
      reverseList = list: genList (n: builtins.elemAt list (length list - n - 1)) (length list);
      unique = builtins.foldl' (found: each: if elem each found then found else found ++ [ each ]) [ ];
      flatten = value: if builtins.isList value then builtins.concatMap lib.flatten value else [ value ];
      forEach = list: f: map f list;

      # Attribute sets
      nameValuePair = name: value: { inherit name value; };
      optionalAttrs = condition: set: if condition then set else { };
      genAttrs = names: f: listToAttrs (map (name: lib.nameValuePair name (f name)) names);
      mapAttrs' = f: set: listToAttrs (lib.mapAttrsToList f set);
      mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
      filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
      zipAttrs = builtins.zipAttrsWith (_: values: values);
      recursiveUpdate =
        a: b:
        builtins.zipAttrsWith (
          _: values:
          if length values == 2 && builtins.all isAttrs values then
            lib.recursiveUpdate (head values) (lib.last values)
          else
            lib.last values
        ) [ a b ];
      attrByPath =
        path: default: set:
        if path == [ ] then
          set
        else if isAttrs set && set ? ${head path} then
          lib.attrByPath (tail path) default set.${head path}
        else
          default;
      getAttrFromPath = path: lib.attrByPath path (throw "cannot find attribute '${concatStringsSep "." path}'");
      setAttrByPath = path: value: if path == [ ] then value else { ${head path} = lib.setAttrByPath (tail path) value; };
      isDerivation = value: value.type or null == "derivation";

      # Strings
      optionalString = condition: text: if condition then text else "";
      concatStrings = concatStringsSep "";
      concatMapStrings = lib.concatMapStringsSep "";
      concatMapStringsSep = separator: f: list: concatStringsSep separator (map f list);
      concatLines = lib.concatMapStrings (line: "${line}\n");
      hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
      hasSuffix = suffix: text: lib.removeSuffix suffix text != text || suffix == "";
      removePrefix = prefix: text: if lib.hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;
      removeSuffix =
        suffix: text:
        let
          start = stringLength text - stringLength suffix;
        in
        if start >= 0 && substring start (-1) text == suffix then substring 0 start text else text;
      splitString = separator: text: filter isString (builtins.split (lib.escapeRegex separator) text);
      escapeRegex = replaceStrings [ "\\" "." "+" "*" "?" "(" ")" "[" "]" "{" "}" "^" "$" "|" ] [ "\\\\" "\\." "\\+" "\\*" "\\?" "\\(" "\\)" "\\[" "\\]" "\\{" "\\}" "\\^" "\\$" "\\|" ];
      escapeShellArg = value: "'${replaceStrings [ "'" ] [ "'\\''" ] (toString value)}'";
      escapeShellArgs = lib.concatMapStringsSep " " lib.escapeShellArg;
      boolToString = value: if value then "true" else "false";
      fileContents = path: lib.removeSuffix "\n" (readFile path);
      getExe = package: "${package}/bin/${package.meta.mainProgram or package.name}";
      getExe' = package: program: "${package}/bin/${program}";

      # The version. The flake and the archives of nixpkgs tell the revision.
      version = lib.trivial.version;
      versions.majorMinor = text: concatStringsSep "." (lib.take 2 (builtins.splitVersion text));
      trivial = {
        release = lib.fileContents ./.version;
        codeName = "Standin";
        version = lib.trivial.release + lib.trivial.versionSuffix;
        versionSuffix = if pathExists ../.version-suffix then lib.fileContents ../.version-suffix else "pre-git";
        revisionWithDefault = default: if pathExists ../.git-revision then lib.fileContents ../.git-revision else default;
      };
    };
in
fix make (_: _: { })
