# A module system with the functions and the wording of the errors that lib/modules.nix of nixpkgs has.
{ lib }:
let
  inherit (builtins)
    addErrorContext
    all
    any
    attrNames
    concatLists
    concatMap
    filter
    head
    isAttrs
    length
    map
    mapAttrs
    ;
  inherit (lib) isFunction showDefs showOption types;

  properties = [ "_class" "_file" "key" "disabledModules" "imports" "require" "options" "config" "meta" "freeformType" ];

  # The name of the set that replaces an argument is seen before its value is known. So the arguments that are asked for are
  # looked up one by one.
  apply =
    file: f: args:
    let
      asked = mapAttrs (
        name: _:
        addErrorContext "while evaluating the module argument `${name}' in \"${file}\":" (args.${name} or args.config._module.args.${name})
      ) (lib.functionArgs f);
    in
    f (args // asked);

  # The parts of a module, whose file is `file` if it names none.
  load =
    args: file: key: module:
    if isFunction module then
      load args file key (apply key module args)
    else if isAttrs module && elemOr [ "if" "override" "merge" ] module then
      load args file key { config = module; }
    else if isAttrs module && module._type or "module" != "module" then
      throw ''
        Expected a module, but found a value of type ${builtins.toJSON module._type}, while trying to load a module into ${file}.
        A module is typically loaded by adding it to the imports = [ ... ]; attribute of an existing module, or in the modules = [ ... ]; argument of various functions.
        Please make sure that each of the list items is a module, and not a different kind of value.
      ''
    else if builtins.isList module then
      throw "Module imports can't be nested lists. Perhaps you meant to remove one level of lists? Definitions: ${showDefs [ { inherit file; value = module; } ]}"
    else if !isAttrs module then
      let
        imported = import module;
      in
      if isAttrs imported || isFunction imported then
        load args (toString module) (toString module) imported
      else
        throw "module ${toString module} (${toString module}) does not look like a module."
    else
      let
        explicit = module ? config || module ? options;
        others = removeAttrs module properties;
        set = if explicit then module.config or { } else removeAttrs module (lib.remove "meta" properties);
      in
      if explicit && others != { } then
        throw "Module `${key}' has an unsupported attribute `${head (attrNames others)}'. This is caused by introducing a top-level `config' or `options' attribute. Add configuration attributes immediately on the top level instead, or move all of them (namely: ${toString (attrNames others)}) into the explicit `config' attribute."
      else
        {
          file = toString module._file or file;
          key = toString module.key or key;
          imports = module.require or [ ] ++ module.imports or [ ];
          options = module.options or { };
          config = if module ? freeformType then lib.mkMerge [ set { _module.freeformType = module.freeformType; } ] else set;
        };
  elemOr = tags: set: builtins.elem (set._type or null) tags;

  # The modules and what they import. A module with a file or a key is there once.
  collect =
    args: modules:
    let
      loaded =
        file: key: list:
        lib.imap1 (n: module: load args file "${key}:anon-${toString n}" module) list;
    in
    builtins.genericClosure {
      startSet = loaded "<unknown-file>" "" modules;
      operator = module: loaded module.file module.key module.imports;
    };

  # Definitions without mkMerge and mkIf.
  discharge =
    value:
    if elemOr [ "merge" ] value then
      concatMap discharge value.contents
    else if elemOr [ "if" ] value then
      if builtins.isBool value.condition then lib.optionals value.condition (discharge value.content) else throw "‘mkIf’ called with a non-Boolean condition"
    else
      [ value ];

  # The options at `path`, with their values, and the definitions that no option takes.
  mergeTree =
    path: modules: defs:
    let
      declared = lib.zipAttrs (
        map (
          module:
          if isAttrs module.options then
            mapAttrs (_: options: { inherit (module) file; inherit options; }) module.options
          else
            throw "An option declaration for `${showOption path}' has type\n`${builtins.typeOf module.options}' rather than an attribute set.\nDid you mean to define this outside of `options'?\n"
        ) modules
      );
      given = lib.zipAttrs (
        map (
          def:
          if isAttrs def.value then
            mapAttrs (_: value: { inherit (def) file; inherit value; }) def.value
          else
            throw "In module `${def.file}', you're trying to define a value of type `${builtins.typeOf def.value}'\nrather than an attribute set for the option\n`${showOption path}'!\n\nThis usually happens if `${showOption path}' has option\ndefinitions inside that are not matched. Please check how to properly define\nthis option by e.g. referring to `man 5 configuration.nix'!\n"
        ) defs
      );
      results = mapAttrs (
        name: declarations:
        let
          loc = path ++ [ name ];
          found = given.${name} or [ ];
          files = map (each: each.file) declarations;
        in
        if !any (each: elemOr [ "option" ] each.options) declarations then
          mergeTree loc declarations (concatMap (def: map (value: { inherit (def) file; inherit value; }) (lib.pushDown def.value)) found)
        else if length declarations > 1 then
          throw "The option `${showOption loc}' in `${head files}' is already declared in ${lib.showFiles (builtins.tail files)}."
        else
          {
            options = evalOption loc (head files) (head declarations).options found;
            unmatched = [ ];
          }
      ) declared;
    in
    {
      options = mapAttrs (_: result: result.options) results;
      unmatched =
        concatMap (result: result.unmatched) (builtins.attrValues results)
        ++ concatLists (
          lib.mapAttrsToList (name: map (def: def // { path = path ++ [ name ]; })) (removeAttrs given (attrNames declared))
        );
    };

  evalOption =
    loc: file: option: defs:
    let
      default = lib.optional (option ? default) { inherit file; value = lib.mkOptionDefault option.default; };
      type = option.type or types.unspecified;
      merged = mergeDefinitions loc type (default ++ defs);
      value =
        if option.readOnly or false && length (default ++ defs) > 1 then
          throw "The option `${showOption loc}' is read-only, but it's set multiple times. Definition values:${
            showDefs (map (def: def // { inherit (mergeDefinitions loc type [ def ]) value; }) (default ++ defs))
          }"
        else
          (option.apply or lib.id) merged.value;
    in
    option
    // {
      inherit loc type;
      inherit (merged) isDefined highestPrio;
      declarations = [ file ];
      definitions = map (def: def.value) merged.defs;
      definitionsWithLocations = merged.defs;
      files = map (def: def.file) merged.defs;
      value = addErrorContext "while evaluating the option `${showOption loc}':" value;
    };

  mergeDefinitions =
    loc: type: all':
    let
      single = concatMap (
        def: map (value: { inherit (def) file; inherit value; }) (addErrorContext "while evaluating definitions from `${def.file}':" (discharge def.value))
      ) all';
      prio = def: if elemOr [ "override" ] def.value then def.value.priority else 100;
      highestPrio = builtins.foldl' (lowest: def: if prio def < lowest then prio def else lowest) 9999 single;
      strip = def: if elemOr [ "override" ] def.value then def // { value = def.value.content; } else def;
      order = def: if elemOr [ "order" ] def.value then def.value.priority else 1000;
      unordered = def: if elemOr [ "order" ] def.value then def // { value = def.value.content; } else def;
      strongest = map strip (filter (def: prio def == highestPrio) single);
      defs = map unordered (builtins.sort (a: b: order a < order b) strongest);
      wrong = filter (def: !type.check def.value) defs;
    in
    {
      inherit defs highestPrio;
      isDefined = defs != [ ];
      value =
        if defs == [ ] then
          type.emptyValue.value
            or (throw "The option `${showOption loc}' was accessed but has no value defined. Try setting the option.")
        else if wrong == [ ] then
          type.merge loc defs
        else
          throw "A definition for option `${showOption loc}' is not of type `${type.description}'. ${lib.optionalString type.nested "TypeError: "}Definition values:${lib.optionalString type.nested " "}${showDefs wrong}";
    };

  property = _type: set: set // { inherit _type; };
in
rec {
  inherit mergeDefinitions;

  # Definitions without mkMerge; mkIf and mkOverride stand at each attribute.
  pushDown =
    value:
    let
      below = f: map (each: if isAttrs each then mapAttrs (_: f) each else each) (pushDown value.content);
    in
    if elemOr [ "merge" ] value then
      concatMap pushDown value.contents
    else if elemOr [ "if" ] value then
      below (mkIf value.condition)
    else if elemOr [ "override" ] value then
      below (mkOverride value.priority)
    else
      [ value ];

  evalModules =
    given@{ modules, specialArgs ? { }, prefix ? [ ], class ? null }:
    let
      internal = {
        _file = "lib/modules.nix";
        key = "lib/modules.nix";
        options._module = {
          args = mkOption { type = types.lazyAttrsOf types.raw; };
          check = mkOption { type = types.bool; default = true; };
          freeformType = mkOption { type = types.raw; default = null; };
        };
        config._module.args = { inherit extendModules; };
      };
      collected = collect ({ inherit lib options specialArgs; config = addErrorContext "if you get an infinite recursion here, you probably reference `config` in `imports`. If you are trying to achieve a conditional import behavior dependent on `config`, consider importing unconditionally, and using `mkEnableOption` and `mkIf` to control its effect." config; } // specialArgs) (modules ++ [ internal ]);
      # As in nixpkgs, the definitions of the last module come first.
      definitions = concatMap (module: map (value: { inherit (module) file; inherit value; }) (pushDown module.config)) (
        lib.reverseList collected
      );
      merged = mergeTree prefix collected definitions;
      inherit (merged) options;

      valuesOf = mapAttrs (_: each: if elemOr [ "option" ] each then each.value else valuesOf each);
      declared = valuesOf options;
      free = declared._module.freeformType;
      config =
        if free == null || merged.unmatched == [ ] then
          declared
        else
          lib.recursiveUpdate (free.merge prefix (
            map (def: {
              inherit (def) file;
              value = lib.setAttrByPath (lib.drop (length prefix) def.path) def.value;
            }) merged.unmatched
          )) declared;

      first = head merged.unmatched;
      siblings = lib.attrByPath (lib.drop (length prefix) (lib.init first.path)) { } options;
      checked =
        if declared._module.check && free == null && merged.unmatched != [ ] then
          throw "The option `${showOption first.path}' does not exist. Definition values:${showDefs [ first ]}${lib.suggestion first.path (lib.remove "_module" (attrNames siblings))}"
        else
          null;

      extendModules = more: evalModules (given // {
        modules = modules ++ more.modules or [ ];
        specialArgs = specialArgs // more.specialArgs or { };
        prefix = more.prefix or prefix;
      });
    in
    {
      _type = "configuration";
      inherit class extendModules;
      options = builtins.seq checked options;
      config = builtins.seq checked (removeAttrs config [ "_module" ]);
      _module = builtins.seq checked config._module;
    };

  setDefaultModuleLocation = file: module: { _file = file; imports = [ module ]; };

  mkIf = condition: content: property "if" { inherit condition content; };
  mkMerge = contents: property "merge" { inherit contents; };
  mkOverride = priority: content: property "override" { inherit priority content; };
  mkOptionDefault = mkOverride 1500;
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkVMOverride = mkOverride 10;
  mkOrder = priority: content: property "order" { inherit priority content; };
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;

  mkOption = property "option";
  mkEnableOption = name: mkOption { type = types.bool; default = false; description = "Whether to enable ${name}."; };
  mkPackageOption = pkgs: name: _: mkOption { type = types.package; default = pkgs.${name}; description = "The ${name} package to use."; };
  isOption = elemOr [ "option" ];
  literalExpression = text: { _type = "literalExpression"; inherit text; };
}
