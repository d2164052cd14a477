# Types of options. `check` says whether one value has the type. `merge` makes one value of all definitions, which are sets of
# `file` and `value`. `nested` types say "TypeError:" in their errors, as in nixpkgs.
{ lib }:
let
  inherit (builtins)
    all
    attrValues
    elem
    filter
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isString
    length
    map
    mapAttrs
    ;
  inherit (lib) mergeDefinitions showDefs showOption;

  mkOptionType = type: { _type = "option-type"; description = type.name; check = _: true; merge = mergeEqual; nested = false; } // type;
  values = map (def: def.value);

  priorities = "Use `lib.mkForce value` or `lib.mkDefault value` to change the priority on any of these definitions.\n";

  mergeOne =
    loc: defs:
    if length defs == 1 then
      (head defs).value
    else
      throw "The option `${showOption loc}' is defined multiple times while it's expected to be unique.\n\nDefinition values:${showDefs defs}\n${priorities}";

  mergeEqual =
    loc: defs:
    if length defs == 1 then
      (head defs).value
    else
      (builtins.foldl' (
        first: def:
        if def.value == first.value then
          first
        else
          throw "The option `${showOption loc}' has conflicting definition values:${
            showDefs [
              first
              def
            ]
          }\n${priorities}"
      ) (head defs) (builtins.tail defs)).value;

  # The definitions of each attribute of sets that are definitions.
  attributes =
    defs:
    lib.zipAttrs (
      builtins.concatMap (def: map (mapAttrs (_: value: { inherit (def) file; inherit value; })) (lib.pushDown def.value)) defs
    );
  evaluated = elemType: loc: defs: mapAttrs (name: mergeDefinitions (loc ++ [ name ]) elemType) (attributes defs);

  simple = name: description: check: mkOptionType { inherit name description check; };
  # The description of an element, in parentheses if it is not a noun.
  phrase = type: if type.noun or true then type.description else "(${type.description})";
  stringLike = value: isString value || builtins.isPath value || value ? outPath || value ? __toString;
in
rec {
  inherit mkOptionType;

  unspecified = mkOptionType {
    name = "unspecified";
    description = "unspecified value";
    merge =
      loc: defs:
      if all isList (values defs) then
        builtins.concatLists (values defs)
      else if all isAttrs (values defs) then
        builtins.foldl' (a: b: a // b) { } (values defs)
      else if all isString (values defs) then
        builtins.concatStringsSep "" (values defs)
      else
        mergeEqual loc defs;
  };
  raw = mkOptionType { name = "raw"; description = "raw value"; merge = mergeOne; };
  anything = mkOptionType {
    name = "anything";
    merge =
      loc: defs:
      if all isAttrs (values defs) && !builtins.any stringLike (values defs) then
        (attrsOf anything).merge loc defs
      else
        mergeEqual loc defs;
  };

  bool = simple "bool" "boolean" isBool;
  int = simple "int" "signed integer" isInt;
  str = simple "str" "string" isString;
  path = simple "path" "absolute path" (value: stringLike value && builtins.substring 0 1 "${toString value}" == "/");
  package = simple "package" "package" (value: lib.isDerivation value || (stringLike value && lib.hasPrefix builtins.storeDir "${value}"));
  port = simple "unsignedInt16" "16 bit unsigned integer; between 0 and 65535 (both inclusive)" (value: isInt value && value >= 0 && value < 65536);
  attrs = mkOptionType {
    name = "attrs";
    description = "attribute set";
    check = isAttrs;
    merge = _: defs: builtins.foldl' (a: b: a // b) { } (values defs);
    emptyValue.value = { };
  };
  ints.unsigned = simple "unsignedInt" "unsigned integer, meaning >=0" (value: isInt value && value >= 0);
  ints.positive = simple "positiveInt" "positive integer, meaning >0" (value: isInt value && value > 0);

  separatedString = separator: mkOptionType {
    name = "separatedString";
    description = "strings concatenated with ${builtins.toJSON separator}";
    check = isString;
    merge = _: defs: builtins.concatStringsSep separator (values defs);
  };
  lines = separatedString "\n";
  commas = separatedString ",";

  enum = choices: simple "enum" "one of ${lib.concatMapStringsSep ", " builtins.toJSON choices}" (value: elem value choices);

  listOf = elemType: mkOptionType {
    name = "listOf";
    description = "list of ${phrase elemType}";
    check = isList;
    nested = true;
    emptyValue.value = [ ];
    merge =
      loc: defs:
      let
        entries =
          n: def:
          lib.imap1 (
            m: value:
            mergeDefinitions (loc ++ [ "[definition ${toString n}-entry ${toString m}]" ]) elemType [
              { inherit (def) file; inherit value; }
            ]
          ) def.value;
      in
      map (each: each.value) (filter (each: each.isDefined) (builtins.concatLists (lib.imap1 entries defs)));
  };

  attrsOf = elemType: mkOptionType {
    name = "attrsOf";
    description = "attribute set of ${phrase elemType}";
    check = isAttrs;
    nested = true;
    emptyValue.value = { };
    merge = loc: defs: mapAttrs (_: each: each.value) (lib.filterAttrs (_: each: each.isDefined) (evaluated elemType loc defs));
  };
  # Whether an attribute is there does not depend on its definitions.
  lazyAttrsOf = elemType: attrsOf elemType // {
    name = "lazyAttrsOf";
    description = "lazy attribute set of ${phrase elemType}";
    merge = loc: defs: mapAttrs (_: each: each.value) (evaluated elemType loc defs);
  };

  nullOr = elemType: mkOptionType {
    name = "nullOr";
    description = "null or ${elemType.description}";
    check = value: value == null || elemType.check value;
    emptyValue.value = null;
    merge = loc: defs: if all (value: value == null) (values defs) then null else elemType.merge loc defs;
  };

  either = a: b: mkOptionType {
    name = "either";
    description = "${a.description} or ${b.description}";
    check = value: a.check value || b.check value;
    merge = loc: defs: (if all a.check (values defs) then a else if all b.check (values defs) then b else unspecified).merge loc defs;
  };
  oneOf = types: builtins.foldl' either (head types) (builtins.tail types);

  submodule = module: submoduleWith { modules = [ module ]; shorthand = true; };
  submoduleWith =
    { modules, specialArgs ? { }, shorthand ? false }:
    mkOptionType {
      name = "submodule";
      noun = false;
      check = value: isAttrs value || isFunction value || builtins.isPath value;
      nested = true;
      emptyValue.value = { };
      merge =
        loc: defs:
        let
          module = def: { _file = def.file; } // (if isAttrs def.value && shorthand then { config = def.value; } else { imports = [ def.value ]; });
        in
        (lib.evalModules {
          inherit specialArgs;
          prefix = loc;
          modules = modules ++ [ { _module.args.name = lib.mkOptionDefault (lib.last loc); } ] ++ map module defs;
        }).config;
    };
}
