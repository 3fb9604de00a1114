-- Orthanc sends each series of images to Sagittal when it is stable, and nothing that Sagittal made.
-- A series that is sent again is told "already there": Sagittal answers each study once.

local images = { CR = true, CT = true, DX = true, MG = true, MR = true, NM = true, OP = true, OPT = true,
                 PT = true, RF = true, US = true, XA = true, XC = true, OT = true }

function OnStableSeries(seriesId, tags, metadata)
  if tags['Manufacturer'] == 'Sagittal' or not images[tags['Modality']] then
    return
  end
  RestApiPost('/modalities/sagittal/store', seriesId)
end
